"""Lines of the log that are written once in a process, since sources are read several times."""

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def say_once(line: str) -> None:
    """Logs a warning, unless the process has logged it before."""
    log.warning(line)


@functools.cache
def inform_once(line: str) -> None:
    """Logs a piece of information, unless the process has logged it before."""
    log.info(line)
