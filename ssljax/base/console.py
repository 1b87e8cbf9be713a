"""The console of a process: log lines and the progress bar share it, so that they do not tear each other."""

import functools
import logging

import rich.console


@functools.cache
def console() -> rich.console.Console:
    """Returns the console, which writes to standard error."""
    return rich.console.Console(stderr=True)


class ConsoleHandler(logging.Handler):
    """Prints records of the log, except those with the attribute `quiet`, which are for files."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "quiet", False):
            console().print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=True)
