"""Requests that are tried again when they fail in passing, as on network file systems."""

import errno
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

log = logging.getLogger(__name__)

Result = TypeVar("Result")
ATTEMPTS = 5
# Errors of a busy or interrupted file system. A missing file, or no permission, does not mend itself.
IN_PASSING = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH}
IN_PASSING |= {errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}


def may_pass(error: BaseException) -> bool:
    """Returns True for an error of a busy or interrupted file system."""
    return isinstance(error, OSError) and error.errno in IN_PASSING


def retried(
    read: Callable[..., Result], first_wait: float = 0.5, may_pass: Callable[[BaseException], bool] = may_pass
) -> Callable[..., Result]:
    """Returns `read`, called up to `ATTEMPTS` times while it raises an error that may pass; the last one is raised.

    Args:
        read: a function that may be called again after an error.
        first_wait: seconds before the third attempt (the second follows at once); each further wait is twice as long.
        may_pass: tells from an error if another attempt may succeed.
    """

    @functools.wraps(read)
    def call(*arguments: Any) -> Result:
        try:  # most reads succeed, and then this costs nothing
            return read(*arguments)
        except Exception as error:
            if not may_pass(error):
                raise
            log.warning("a read or write failed (%s); it is tried again", error)
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            stop=tenacity.stop_after_attempt(ATTEMPTS - 1),
            wait=tenacity.wait_exponential(multiplier=first_wait),
            reraise=True,
        )
        return again(read, *arguments)

    return call
