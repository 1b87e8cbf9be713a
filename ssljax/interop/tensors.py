"""Tensors in safetensors files, or in files of torch, one at a time."""

import contextlib
import functools
import json
import math
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors

from ssljax.base.errors import UserError
from ssljax.base.files import replacing

# (name of a single file, pattern of several files); an index has the name of the single file and .index.json.
_SAFETENSORS, _TORCH = ("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")

_WRAPPER = re.compile(r"((?:module\.|_orig_mod\.)+)(.*)")  # prefixes of names


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by name, read when they are looked up.

    The files are `model.safetensors`; else those that its index names; else all `*.safetensors`; else, likewise,
    `pytorch_model.bin` and its shards, which torch must read.

    Args:
        folder: folder of the files.
        renames: patterns of names in other versions of the format, and their replacements.
        prefix: prefix of the names of the inner model, which is added to all names if none has it.
        leave_out: regular expression; tensors whose names match are left out.

    Attributes:
        bare: True if the prefix was added.

    Raises:
        UserError: a file is missing, damaged or of another format, two files have the same tensor, names have the
            prefix of a wrapper of torch, or no name matches `leave_out`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        renames: Sequence[tuple[str, str]] = (),
        prefix: str = "",
        leave_out: str | None = None,
    ):
        self.folder = folder
        files = {_renamed(stored, renames): (file, stored) for stored, file in _stored(folder).items()}
        if wrapped := next(filter(None, map(_WRAPPER.match, files)), None):
            wrapper, name = wrapped.groups()
            raise UserError(
                f"{folder}: {wrapped.string}: has the prefix {wrapper!r} of a torch wrapper (DistributedDataParallel, "
                f"torch.compile), must be {name!r}; save the state_dict of the inner module"
            )
        if leave_out is not None:
            kept = {name: file for name, file in files.items() if not _search(leave_out, name)}
            if len(kept) == len(files):
                raise UserError(f"leave_out: {leave_out!r} matches no tensor of {folder}")
            files = kept
        self.bare = bool(prefix) and not any(name.startswith(prefix) for name in files)
        self._files: dict[str, tuple[Any, str]] = {prefix * self.bare + name: file for name, file in files.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._files[name]
        return file.read(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._files[name]
        return file.shape(stored)


def _search(pattern: str, name: str) -> bool:
    try:
        return bool(re.search(pattern, name))
    except re.error as error:
        raise UserError(f"leave_out: {pattern!r} is no regular expression ({error})") from error


def _renamed(name: str, renames: Sequence[tuple[str, str]]) -> str:
    return functools.reduce(lambda name, rename: re.sub(rename[0], rename[1], name), renames, name)


class Planned(NamedTuple):
    """A tensor that is made when it is written, so that the host holds one tensor at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def planned(array: np.ndarray) -> Planned:
    """Returns an array as a tensor that is made already."""
    return Planned(array.shape, array.dtype, lambda: array)


def write(tensors: Mapping[str, Planned], folder: pathlib.Path) -> None:
    """Writes `model.safetensors`, tensor by tensor; an older index and the files that it names are removed.

    The file is complete or absent. (The library `safetensors` writes only tensors that are all in memory.)
    """
    with replacing(folder / _SAFETENSORS[0]) as path, path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data)
    index = folder / f"{_SAFETENSORS[0]}.index.json"
    if index.is_file():
        with contextlib.suppress(UserError):  # a damaged index names no files
            for name in set(_weight_map(index).values()) - {_SAFETENSORS[0]}:
                (folder / name).unlink(missing_ok=True)
        index.unlink()


def _header(tensors: Mapping[str, Planned]) -> bytes:
    """The start of a safetensors file: the length of a JSON object, and the object, {tensor: type, shape, bytes}."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        kind = _KINDS[tensor.dtype.name]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text


_KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"} | {
    f"{sign}int{bits}": f"{letter}{bits}" for sign, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)
}


def _stored(folder: pathlib.Path) -> dict[str, Any]:
    """{tensor: the file that holds it}."""
    for single, several in (_SAFETENSORS, _TORCH):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return dict.fromkeys((file := _open(folder / single)).names, file)
        if index.is_file():
            return _indexed(index)
        if paths := sorted(folder.glob(several)):
            return _merged(paths)
    raise UserError(f"{folder}: has no *.safetensors file and no pytorch_model.bin")


def _open(path: pathlib.Path) -> Any:
    return _Torch(path) if path.suffix == ".bin" else _SafeTensors(path)


def _indexed(index: pathlib.Path) -> dict[str, Any]:
    file_of = _weight_map(index)
    missing = sorted({name for name in file_of.values() if not (index.parent / name).is_file()})
    if missing:
        raise UserError(f"{index}: names {', '.join(missing)}, which the folder does not have")
    files = {name: _open(index.parent / name) for name in sorted(set(file_of.values()))}
    contents = {name: set(file.names) for name, file in files.items()}
    for tensor, name in file_of.items():
        if tensor not in contents[name]:
            raise UserError(f"{index}: names {tensor}, which {name} does not have")
    # Tensors that the index leaves out are read too.
    out = {tensor: file for file in files.values() for tensor in file.names}
    return out | {tensor: files[name] for tensor, name in file_of.items()}


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """{tensor: name of a file in the folder of the index}."""
    try:
        file_of = json.loads(index.read_text())["weight_map"]
        if all(pathlib.PurePath(name).name == name for name in file_of.values()):
            return file_of
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise UserError(f"{index}: not an index of tensors (a weight_map of tensors and files is required)")


def _merged(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for file in map(_open, paths):
        for name in file.names:
            if name in out:
                other = out[name].path.name
                raise UserError(f"{file.path}: has {name} too, as {other} does; without an index a name must be unique")
            out[name] = file
    return out


class _SafeTensors:
    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self._file = safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from error
        self.names = list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        try:
            return self._file.get_tensor(name)
        except AttributeError as error:  # a number format that NumPy does not have
            kind = self._file.get_slice(name).get_dtype()
            raise UserError(f"{self.path}: {name}: is {kind}, and quantised weights are not supported") from error


class _Torch:
    """A file of torch, read by an unpickler that makes only tensors, so that no code in the file is run."""

    def __init__(self, path: pathlib.Path):
        try:
            import torch
        except ImportError as error:
            needs = "reading it needs torch (pip install torch==2.13.0); *.safetensors files do not"
            raise UserError(f"{path}: {needs}") from error
        self.path = path
        try:
            # Files of the newer form stay on disk until a tensor is read.
            self._tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            self.names = [name for name, tensor in self._tensors.items() if isinstance(tensor, torch.Tensor)]
        except Exception as error:  # the unpickler raises all kinds of errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not a whole file of tensors ({reason})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
