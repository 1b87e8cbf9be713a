"""Lazy look-up of registered names and of import paths, and errors for unknown names."""

import subprocess
import sys

import pytest

from ssljax.base.errors import UserError
from ssljax.base.registry import Registry

REGISTRY = Registry("thing", {"first": "collections:Counter", "second": "no_such_module_xyz:Thing"})


def test_listing_and_lookup():
    import collections

    assert list(REGISTRY) == ["first", "second"] and "first" in REGISTRY and "third" not in REGISTRY
    assert REGISTRY.get("first") is collections.Counter
    assert (
        REGISTRY.get("collections:OrderedDict") is collections.OrderedDict
    )  # a class outside the package, by its import path


def test_entries_are_imported_at_first_use():
    code = (
        "import sys; from ssljax.base.registry import Registry; r = Registry('thing', {'x': 'wave:Wave_read'});"
        "assert 'wave' not in sys.modules; list(r); assert 'wave' not in sys.modules;"
        "r.get('x'); assert 'wave' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name, message",
    [
        ("frist", r"^model\.name: unknown thing 'frist'; did you mean 'first'\? \(known: first, second; or 'package"),
        ("zzz", r"^model\.name: unknown thing 'zzz' \(known: first, second;"),
        (3, r"^model\.name: unknown thing 3"),
        (["first"], r"^model\.name: unknown thing \['first'\]"),
        ("second", r"^model\.name: cannot import 'no_such_module_xyz:Thing': No module named 'no_such_module_xyz'"),
        ("no.such.module:Thing", r"^model\.name: cannot import 'no\.such\.module:Thing': No module named 'no'"),
        ("collections:Cuonter", r"^model\.name: module 'collections' has no 'Cuonter'; did you mean 'Counter'\?"),
        ("collections:", r"^model\.name: module 'collections' has no ''"),
        (":Counter", r"^model\.name: cannot import ':Counter'"),
        (".collections:Counter", r"^model\.name: cannot import '\.collections:Counter'"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(UserError, match=message):
        REGISTRY.get(name, "model.name")


def test_a_plugin_with_a_missing_import(tmp_path, monkeypatch):
    (tmp_path / "stale_plugin_xyz.py").write_text("from collections import NoSuchThing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^x\.name: cannot import 'stale_plugin_xyz:Thing': .*'NoSuchThing'"):
        REGISTRY.get("stale_plugin_xyz:Thing", "x.name")


def test_an_error_inside_a_plugin_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin_xyz.py").write_text("import collections\ncollections.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="no_such_name"):
        REGISTRY.get("broken_plugin_xyz:Thing")
