"""Tensors in safetensors files, one at a time."""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors

from ssljax.base.errors import UserError

_INDEX = "model.safetensors.index.json"


class Tensors:
    """The tensors of a folder by name: one `*.safetensors` file, or several with an index.

    `renames` are patterns of names and what they become (other names of the same, from other versions).

    Raises:
        UserError: no file, a missing one, or one that is cut short or is no safetensors file.
    """

    def __init__(self, folder: pathlib.Path, renames: Sequence[tuple[str, str]] = ()):
        if (folder / _INDEX).is_file():
            place = json.loads((folder / _INDEX).read_text())["weight_map"]
            lost = sorted({name for name in place.values() if not (folder / name).is_file()})
            if lost:
                raise UserError(f"{folder / _INDEX}: names {', '.join(lost)}, which the folder does not have")
            names = sorted(set(place.values()))
        else:
            names = sorted(path.name for path in folder.glob("*.safetensors"))
            if not names:
                raise UserError(f"{folder}: has no *.safetensors file")
        self._files: dict[str, Any] = {}
        for name in names:
            try:
                file = safetensors.safe_open(folder / name, framework="np")
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{folder / name}: not a whole safetensors file ({error})") from error
            for theirs in list(file.keys()):
                name = theirs
                for pattern, new in renames:
                    name = re.sub(pattern, new, name)
                self._files[name] = (file, theirs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        file, theirs = self._files[name]
        return tuple(file.get_slice(theirs).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        file, theirs = self._files[name]
        return file.get_tensor(theirs)
