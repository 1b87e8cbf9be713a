"""Arrays that a program gives to `train`, stored in the workdir, so that the run can be continued and evaluated."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import replacing

Arrays = Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]]


def store_arrays(folder: pathlib.Path, arrays: Arrays) -> dict[str, Any]:
    """Writes arrays to `arrays.npz` in a workdir and returns the keys of the `data` group that select them.

    Args:
        folder: the workdir, created if missing.
        arrays: {name in the batch: array [N, ...]}, or {split: such a mapping}.

    Raises:
        UserError: the run of the workdir has other arrays, or the mapping mixes arrays and splits.
    """
    nested = [isinstance(value, Mapping) for value in arrays.values()]
    if not arrays or any(nested) != all(nested):
        raise UserError("arrays: must be {name: array, ...} or {split: {name: array, ...}, ...}")
    keys: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    parts: Any = arrays if all(nested) else {"": arrays}
    for split, part in parts.items():
        names = {name: f"{split}_{name}" if split else name for name in part}
        keys[split] = names
        columns |= {names[name]: np.asarray(array) for name, array in part.items()}
    path = folder / "arrays.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or not (folder / "config.json").exists():  # a start that failed leaves no run
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]
    elif not _equal(path, columns):
        raise UserError(f"arrays: {str(path)!r} holds other arrays; choose another workdir")
    return {"source": f"npz:{path}", "keys": keys if all(nested) else keys[""]}


def _equal(path: pathlib.Path, columns: Mapping[str, np.ndarray]) -> bool:
    with np.load(path, allow_pickle=False) as stored:
        return set(stored.files) == set(columns) and all(np.array_equal(stored[k], v) for k, v in columns.items())
