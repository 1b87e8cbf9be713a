"""Tensors in safetensors files, or in files of torch, one at a time."""

import functools
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors

from ssljax.base.errors import UserError

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class Tensors:
    """The tensors of a folder by name: one `*.safetensors` file, or several with an index; else `pytorch_model*.bin`,
    likewise, for which torch must be installed.

    `renames` are patterns of names and what they become (other names of the same, from other versions).

    Raises:
        UserError: no file, a missing one, or one that is cut short or of another format.
    """

    def __init__(self, folder: pathlib.Path, renames: Sequence[tuple[str, str]] = ()):
        self._files: dict[str, tuple[Any, str]] = {}
        for name in _names(folder):
            path = folder / name
            file = _Torch(path) if path.suffix == ".bin" else _SafeTensors(path)
            for stored in file.names:
                now = functools.reduce(lambda name, rename: re.sub(rename[0], rename[1], name), renames, stored)
                self._files[now] = (file, stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._files[name]
        return file.shape(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._files[name]
        return file.read(stored)


def _names(folder: pathlib.Path) -> list[str]:
    index = next((folder / name for name in _INDICES if (folder / name).is_file()), None)
    single = sorted(path.name for path in folder.glob("*.safetensors"))
    if index is None or (index.name == _INDICES[1] and single):
        names = single or sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        if not names:
            raise UserError(f"{folder}: has no *.safetensors file and no pytorch_model.bin")
        return names
    place = json.loads(index.read_text())["weight_map"]
    lost = sorted({name for name in place.values() if not (folder / name).is_file()})
    if lost:
        raise UserError(f"{index}: names {', '.join(lost)}, which the folder does not have")
    return sorted(set(place.values()))


class _SafeTensors:
    def __init__(self, path: pathlib.Path):
        try:
            self._file = safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from error
        self.names = list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


class _Torch:
    """Its unpickler makes tensors and nothing else, so that no code in the file is run."""

    def __init__(self, path: pathlib.Path):
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"{path}: reading it needs torch (pip install torch==2.13.0), which *.safetensors do not"
            ) from error
        try:
            # Files of the newer form stay on disk until a tensor is read.
            self._tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            self.names = [name for name, tensor in self._tensors.items() if isinstance(tensor, torch.Tensor)]
        except Exception as error:  # the unpickler raises whatever the bytes make it stumble over
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not a whole file of tensors ({reason})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
