"""Objects at an address (`gs://`, `s3://`, `memory://`, ...): read, written whole and listed through fsspec.

Object stores have no renaming, no appending and no locks. What is written is seen by every later reader (so do `gs://`
and `s3://` promise). The library of a scheme, `gcsfs` or `s3fs`, is an extra of the package and finds the credentials
itself.
"""

import contextlib
import pathlib
import re
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import fsspec

from ssljax.base import retries
from ssljax.base.errors import UserError, one_line

Result = TypeVar("Result")
_ADDRESS = re.compile(r"(?!(file|local)://)[A-Za-z][\w+.-]*://", re.IGNORECASE)
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}


def is_address(path: object) -> bool:
    """Returns True for an address such as gs://bucket/run, a text or a path of `universal_pathlib`; not for file://."""
    return _ADDRESS.match(str(path)) is not None


class BucketError(UserError):
    """A request that a storage refuses.

    Attributes:
        denied: True if the credentials lack a permission.
        passing: True if the same request may succeed later.
        missing: True if there is no such object or bucket.
    """

    def __init__(self, message: str, denied: bool = False, passing: bool = False, missing: bool = False):
        super().__init__(message)
        self.denied, self.passing, self.missing = denied, passing, missing


class Bucket:
    """The objects below an address. Names are relative to it; requests that fail in passing are tried again.

    Args:
        address: such as gs://bucket/run.
        key: option or config key, for messages.
        first_wait: seconds before the third attempt of a request, see `retries.retried`.

    Raises:
        UserError: an unknown scheme, or its library is not installed.
    """

    def __init__(self, address: str, key: str, first_wait: float = 1.0):
        self.address, self._key, self._wait = address.rstrip("/"), key, first_wait
        scheme, _, rest = address.partition("://")
        if not rest.strip("/"):
            raise UserError(f"{key}: got {address!r}, must name a bucket and a folder in it, as gs://bucket/run")
        self._root = ""
        # Listings are never remembered: other machines write too.
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            extra = f"pip install ssljax[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else one_line(str(error))
            raise UserError(f"{key}: {address} needs a library that is not installed; {extra}") from error
        except Exception as error:  # the libraries of file systems raise types of their own
            raise self._error("open", "", error) from error

    def sizes(self, below: str = "") -> dict[str, int]:
        """Returns {name: bytes} of all objects whose name begins with the folder `below`; {} if there are none.

        Raises:
            BucketError: the storage does not answer, or refuses.
        """

        def find() -> dict[str, int]:
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                found = self._fs.find(self._path(below), detail=True)
                # A storage may answer with the object itself when asked for what is below it.
                return {self._name(path): int(info["size"]) for path, info in found.items()}
            return {}

        return {name: size for name, size in self._call("list", below, find).items() if name}

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object; None if there is none.

        Raises:
            BucketError: the storage does not answer, or refuses.
        """

        def cat() -> bytes | None:
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._call("read", name, cat)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object whole.

        Raises:
            BucketError: the storage does not answer, or refuses.
        """
        self._call("write", name, lambda: self._fs.pipe_file(self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object that does not exist; returns False, and changes nothing, if it exists.

        On storages without such a request it is written if it was not found before.

        Raises:
            BucketError: the storage does not answer, or refuses.
        """

        def make() -> bool:
            if self._fs.exists(self._path(name)):  # there are storages that accept the condition and ignore it
                return False
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError):
                self._fs.pipe_file(self._path(name), content)
            return True

        # An attempt whose answer was lost has written the content all the same.
        return self._call("write", name, make) or self.read(name) == content

    def upload(self, file: pathlib.Path, name: str) -> None:
        """Writes an object with the content of a file.

        Raises:
            FileNotFoundError: the file has gone.
            BucketError: the storage does not answer, or refuses.
        """
        size = file.stat().st_size  # a file that has gone is no error of the storage
        if size < _SMALL:
            self.write(name, file.read_bytes())
        else:
            self._call("write", name, lambda: self._fs.put_file(str(file), self._path(name)))

    def download(self, name: str, file: pathlib.Path) -> None:
        """Writes the content of an object into a file, whose folder is made.

        Raises:
            BucketError: the storage does not answer, or refuses, or the object has gone.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{threading.get_ident()}.tmp")
        try:
            self._call("read", name, lambda: self._fs.get_file(self._path(name), str(part)))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def copy(self, name: str, target: str) -> None:
        """Copies an object, within the storage if it can.

        Raises:
            BucketError: the storage does not answer, or refuses, or the object has gone.
        """
        self._call("write", target, lambda: self._fs.cp_file(self._path(name), self._path(target)))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, in this order; those that have gone are no error.

        Raises:
            BucketError: the storage does not answer, or refuses.
        """

        def rm(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        for name in names:
            self._call("remove", name, lambda: rm(name))  # noqa: B023

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/") if path.startswith(self._root) else ""

    def _call(self, verb: str, name: str, request: Callable[[], Result]) -> Result:
        try:
            return retries.retried(request, self._wait, lambda error: may_pass(error, self._root))()
        except Exception as error:  # the libraries of file systems raise types of their own
            raise self._error(verb, name, error) from error

    def _error(self, verb: str, name: str, error: Exception) -> BucketError:
        place = f"{self.address}/{name}" if name else self.address
        text = one_line(str(error) or type(error).__name__)[:300]
        missing = isinstance(error, FileNotFoundError) or "NoSuchBucket" in text
        if not missing and _is_denied(error, self._root):
            right = "give the credentials of this machine the right to list, read, write and remove objects there"
            return BucketError(f"{self._key}: cannot {verb} {place}: no permission ({text}); {right}", denied=True)
        if missing:
            right = "make the bucket, or correct its name"
            return BucketError(f"{self._key}: cannot {verb} {place}: not found ({text}); {right}", missing=True)
        passing = may_pass(error, self._root)
        return BucketError(f"{self._key}: cannot {verb} {place}: {text}", passing=passing)


_SMALL = 1 << 22  # bytes; larger files are sent in pieces
_DENIED = re.compile(r"forbidden|access ?denied|permission|credentials|unauthori[sz]ed", re.IGNORECASE)
_PASSING = re.compile(
    r"timeout|connection|temporar|unavailable|slow ?down|(server|internal) ?error|disconnected|payload|incomplete",
    re.IGNORECASE,
)


def _code(error: BaseException) -> object:
    return getattr(error, "code", None) or getattr(error, "status", None)


def _words(error: BaseException, root: str) -> str:
    """Returns the type and message of an error without the path of the bucket, whose words mean nothing here."""
    text = re.sub(re.escape(root) + r"\S*", "", str(error)) if root else str(error)
    return f"{type(error).__name__} {text}"


def _is_denied(error: Exception, root: str) -> bool:
    if isinstance(error, FileNotFoundError | FileExistsError):
        return False
    denied = isinstance(error, PermissionError) or str(_code(error)) in ("401", "403")
    return denied or _DENIED.search(_words(error, root)) is not None


def may_pass(error: BaseException, root: str = "") -> bool:
    """Returns True for an error of a network or of a busy server, which the libraries raise as types of their own.

    Args:
        error: the error.
        root: path of the bucket, whose words say nothing of the error.
    """
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | UserError | TypeError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or retries.may_pass(error):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return False
    code = _code(error)
    if isinstance(code, int):
        return code in (408, 429) or 500 <= code < 600
    return isinstance(error, Exception) and _PASSING.search(_words(error, root)) is not None
