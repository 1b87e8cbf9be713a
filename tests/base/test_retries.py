"""Reads that fail in passing are tried again; other errors are raised at once."""

import errno
import logging

import pytest

from ssljax.base.retries import ATTEMPTS, retried


class Flaky:
    def __init__(self, failures, number):
        self.failures, self.number, self.calls = failures, number, 0

    def __call__(self, row):
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.number, "as on a network file system")
        return row + 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_succeeds_after_errors_that_pass(number, caplog):
    read = Flaky(ATTEMPTS - 1, number)
    with caplog.at_level(logging.WARNING, "ssljax"):
        assert retried(read, first_wait=0)(3) == 4
    assert read.calls == ATTEMPTS
    assert caplog.messages == [
        f"a read or write failed ([Errno {number}] as on a network file system); it is tried again"
    ]


def test_the_last_error_is_raised():
    read = Flaky(ATTEMPTS, errno.EIO)
    with pytest.raises(OSError, match="network file system"):
        retried(read, first_wait=0)(3)
    assert read.calls == ATTEMPTS


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_other_errors_are_raised_at_once(number):
    read = Flaky(1, number)
    with pytest.raises(OSError):
        retried(read)(3)
    assert read.calls == 1
