"""Folders that are built once and kept on disk. An interrupted build leaves no folder that looks complete."""

import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

from ssljax.base.errors import UserError
from ssljax.base.files import flush, local_folder
from ssljax.base.locks import locked

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def default_root() -> pathlib.Path:
    """Returns the folder of caches if the config names none: $SSLJAX_CACHE, else ~/.cache/ssljax."""
    return local_folder(os.environ.get("SSLJAX_CACHE") or "~/.cache/ssljax", "SSLJAX_CACHE")


def build_once(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `folder`, which `build` fills first if it does not exist.

    `build` writes into a temporary folder, which is renamed after all files are written and flushed. A lock lets one
    process build while the others wait.

    Raises:
        UserError: the cache cannot be written (no space, no permission).
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock")):
            if folder.is_dir():
                return folder
            for stale in folder.parent.glob(folder.name + ".tmp-*"):  # of an interrupted build, whose lock is held now
                shutil.rmtree(stale, ignore_errors=True)
            temporary = pathlib.Path(tempfile.mkdtemp(prefix=folder.name + ".tmp-", dir=folder.parent))
            try:
                build(temporary)
                for path in temporary.rglob("*"):
                    flush(path)
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise UserError(
                f"data.cache_dir: cannot write {folder.parent} ({error.strerror}); name a folder that can be written"
            ) from error
        raise
    return folder
