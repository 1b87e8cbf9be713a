"""Registries of configurable classes by name, which are imported on first use."""

import importlib
from collections.abc import Iterator
from typing import Any

from ssljax.base.errors import UserError, located, nearest, shown


class Registry:
    """A table {name: "module:attribute"}; `get` imports the attribute.

    A name with a colon is itself an import path, so a config can name a class of another package
    (`objective.name = "my_package.objectives:Mine"`).

    Attributes:
        kind: description of an entry, for messages.
        entries: {name: "module:attribute"}.
        has: attributes that a class must have; empty: entries need not be classes.
    """

    def __init__(self, kind: str, entries: dict[str, str], has: tuple[str, ...] = ()):
        self.kind = kind
        self.entries = entries
        self.has = has

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def only(self, *names: str) -> "Registry":
        """Returns a registry with these entries only."""
        return Registry(self.kind, {name: self.entries[name] for name in names}, self.has)

    def get(self, name: str, path: str = "name") -> Any:
        """Imports the object that is registered as `name`.

        Args:
            name: a name of the registry, or "module:attribute".
            path: config key, for messages.

        Raises:
            UserError: the name is unknown, the import failed, or the object is no class of this kind.
        """
        target = self.entries.get(name, name if ":" in name else None) if isinstance(name, str) else None
        if target is None:
            raise UserError(
                f"{path}: unknown {self.kind} {shown(name)}{nearest(str(name), self.entries)} "
                f"(known: {', '.join(self)}; or 'package.module:Class')"
            )
        module, _, attribute = target.partition(":")
        try:
            found = importlib.import_module(module)
            member: Any = getattr(found, attribute, _ABSENT)
        except (Exception, SystemExit) as error:  # a missing module, or any error of its code
            # The text of the error shows whether the module or one of its imports is missing.
            why = str(error) if isinstance(error, ImportError) else located(error)
            raise UserError(f"{path}: cannot import {shown(target)}: {why}") from error
        if member is _ABSENT:
            raise UserError(f"{path}: module {module!r} has no {attribute!r}{nearest(attribute, dir(found))}")
        if self.has and not isinstance(member, type):
            raise UserError(f"{path}: {target!r} is {shown(member)}, must be the class of a {self.kind}")
        lacks = [key for key in self.has if not any(key in vars(cls) for cls in member.__mro__)]
        if lacks:
            raise UserError(f"{path}: {target!r} is not the class of a {self.kind} (it lacks {', '.join(lacks)})")
        return member


_ABSENT = object()
