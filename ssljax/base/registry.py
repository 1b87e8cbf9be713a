"""Registries of configurable classes by name, which are imported on first use."""

import importlib
from collections.abc import Iterator
from typing import Any

from ssljax.base.errors import UserError, nearest


class Registry:
    """A table {name: "module:attribute"}; `get` imports the attribute.

    A name with a colon is itself an import path, so a config can name a class of another package
    (`objective.name = "my_package.objectives:Mine"`).
    """

    def __init__(self, kind: str, entries: dict[str, str]):
        self.kind = kind
        self.entries = entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def only(self, *names: str) -> "Registry":
        """Returns a registry with these entries only."""
        return Registry(self.kind, {name: self.entries[name] for name in names})

    def get(self, name: str, path: str = "name") -> Any:
        """Imports the object that is registered as `name`.

        Args:
            name: a name of the registry, or "module:attribute".
            path: config key, for messages.

        Raises:
            UserError: the name is unknown, or the import failed.
        """
        target = self.entries.get(name, name if ":" in name else None) if isinstance(name, str) else None
        if target is None:
            raise UserError(
                f"{path}: unknown {self.kind} {name!r}{nearest(str(name), self.entries)} "
                f"(known: {', '.join(self)}; or 'package.module:Class')"
            )
        module, _, attribute = target.partition(":")
        try:
            found = importlib.import_module(module)
        except (ImportError, ValueError, TypeError) as error:  # missing module, empty name, relative name
            # The text of the error shows whether the module or one of its imports is missing.
            raise UserError(f"{path}: cannot import {target!r}: {error}") from error
        if not hasattr(found, attribute):
            raise UserError(f"{path}: module {module!r} has no {attribute!r}{nearest(attribute, dir(found))}")
        return getattr(found, attribute)
