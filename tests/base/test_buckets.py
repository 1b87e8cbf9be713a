"""Objects below an address, on file systems of fsspec that behave well, fail in passing, refuse or lie."""

import errno
import importlib.util

import disk  # noqa: F401  (registers disk://)
import pytest

from ssljax.base.buckets import Bucket, BucketError, is_address, may_pass
from ssljax.base.errors import UserError


@pytest.fixture(params=["memory", "disk"])
def bucket(request, tmp_path):
    address = f"memory://{tmp_path.name}/run" if request.param == "memory" else f"disk://{tmp_path}/run"
    return Bucket(address, "--workdir", first_wait=0.01)


def test_addresses():
    assert is_address("gs://bucket/run") and is_address("s3://b/c") and is_address("memory://b")
    assert not any(map(is_address, ("runs/a", "/runs/a", "gs:/bucket", "", "a b://c", "file:///runs/a")))


def test_objects_are_written_read_listed_and_removed(bucket, tmp_path):
    assert bucket.sizes() == {} and bucket.read("a.txt") is None
    bucket.write("a.txt", b"one")
    bucket.write("deep/er/b.txt", b"four")
    bucket.write("deeper.txt", b"")
    assert bucket.sizes() == {"a.txt": 3, "deep/er/b.txt": 4, "deeper.txt": 0}
    assert bucket.sizes("deep") == {"deep/er/b.txt": 4}
    bucket.write("a.txt", b"other")
    assert bucket.read("a.txt") == b"other"
    bucket.download("deep/er/b.txt", tmp_path / "new" / "b")
    assert [p.read_bytes() for p in (tmp_path / "new").iterdir()] == [b"four"]
    bucket.remove(["a.txt", "gone.txt", "deep/er/b.txt"])
    assert bucket.sizes() == {"deeper.txt": 0}


def test_small_and_large_files_are_uploaded(bucket, tmp_path):
    for size in (0, 10, (1 << 22) + 5):
        (tmp_path / "x").write_bytes(b"y" * size)
        bucket.upload(tmp_path / "x", "folder/x")
        assert bucket.sizes()["folder/x"] == size and bucket.read("folder/x") == b"y" * size
    with pytest.raises(FileNotFoundError):
        bucket.upload(tmp_path / "missing", "x")


def test_an_object_is_created_once(bucket):
    assert bucket.create("lease", b"mine")
    assert not bucket.create("lease", b"yours")
    assert bucket.read("lease") == b"mine"


def failing(bucket, monkeypatch, name, errors):
    """The file system raises these errors first; returns the list of those that are left."""
    kind, left = type(bucket._fs), list(errors)
    method = getattr(kind, name)

    def call(self, *arguments, **more):
        if left:
            raise left.pop(0)
        return method(self, *arguments, **more)

    monkeypatch.setattr(kind, name, call)
    return left


def test_requests_that_fail_in_passing_are_tried_again(bucket, monkeypatch):
    left = failing(bucket, monkeypatch, "pipe_file", [ConnectionResetError(), OSError(errno.EIO, "x"), TimeoutError()])
    bucket.write("a", b"1")
    assert not left and bucket.read("a") == b"1"


def test_an_attempt_whose_answer_was_lost_has_created_the_object(bucket, monkeypatch):
    kind, made = type(bucket._fs), []
    method = kind.pipe_file

    def call(self, *arguments, **more):
        method(self, *arguments, **more)
        if not made:
            made.append(1)
            raise ConnectionResetError

    monkeypatch.setattr(kind, "pipe_file", call)
    assert bucket.create("lease", b"mine") and bucket.read("lease") == b"mine"


class Refused(Exception):
    """An error as `gcsfs` raises it."""

    code = 403


@pytest.mark.parametrize(
    ("error", "text", "denied", "passing"),
    [
        (PermissionError("Access Denied"), "no permission (Access Denied); give the credentials", True, False),
        (Refused("Forbidden: no storage.objects.create"), "no permission (Forbidden", True, False),
        (FileNotFoundError("The specified bucket does not exist"), "not found (The specified bucket", False, False),
        (OSError("NoSuchBucket: x"), "make the bucket, or correct its name", False, False),
        (ConnectionError("reset"), ": reset", False, True),
        (ValueError("two\nlines"), ": two lines", False, False),
        (Refused(), "no permission (Refused)", True, False),
        (FileNotFoundError("/bucket/run/checkpoints/401/state"), "not found", False, False),
        (type("IncompleteRead", (Exception,), {})("3 of 9 bytes"), ": 3 of 9 bytes", False, True),
    ],
)
def test_errors_are_one_line(bucket, monkeypatch, error, text, denied, passing):
    failing(bucket, monkeypatch, "pipe_file", [error] * 9)
    with pytest.raises(BucketError) as raised:
        bucket.write("config.json", b"{}")
    message = str(raised.value)
    assert message.startswith(f"--workdir: cannot write {bucket.address}/config.json: ") and text in message
    assert (raised.value.denied, raised.value.passing) == (denied, passing) and "\n" not in message


def test_errors_that_may_pass():
    busy = type("Busy", (Exception,), {"status": 503})
    assert may_pass(busy()) and may_pass(type("EndpointConnectionError", (Exception,), {})())
    assert not any(map(may_pass, (Refused(), FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full"))))


def test_wrong_addresses():
    with pytest.raises(UserError, match=r"--workdir: cannot open nosuch://b/c: .*nosuch"):
        Bucket("nosuch://b/c", "--workdir")
    with pytest.raises(UserError, match="must name a bucket and a folder in it"):
        Bucket("gs://", "--workdir")
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(
            UserError, match=r"s3://b/c needs a library that is not installed; pip install ssljax\[s3\]"
        ):
            Bucket("s3://b/c", "--workdir")


@pytest.mark.parametrize("folder", ["my-credentials", "connection-test", "401"])
def test_words_of_the_path_say_nothing_of_an_error(tmp_path, monkeypatch, folder):
    bucket = Bucket(f"disk://{tmp_path}/{folder}", "--workdir", first_wait=0)
    failing(bucket, monkeypatch, "pipe_file", [ValueError(f"{bucket._root}/config.json: odd")] * 9)
    with pytest.raises(BucketError, match="odd") as raised:
        bucket.write("config.json", b"")
    assert not raised.value.denied and not raised.value.passing
