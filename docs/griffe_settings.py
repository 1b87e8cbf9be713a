"""Griffe extension for the API reference: `setting(default, doc=...)` becomes the default and its documentation."""

import ast
from typing import Any

import griffe


class Settings(griffe.Extension):
    """Reads the keys of configuration classes from the source; nothing is imported."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, agent: Any, **_: Any) -> None:
        """Replaces the value of an attribute that is a call of `setting`, and adds its `doc` as docstring."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] != "setting":
            return
        words = {word.arg: word.value for word in call.keywords}
        doc = words.get("doc")
        if isinstance(doc, ast.Name):  # a text that several keys share
            doc = ast.parse(str(agent.current.module.members[doc.id].value), mode="eval").body
        if isinstance(doc, ast.Constant):
            attr.docstring = griffe.Docstring(doc.value, parent=attr)
        attr.value = ast.unparse(call.args[0]) if call.args else None
