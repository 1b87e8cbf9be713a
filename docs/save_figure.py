"""Saves a figure of a report or comparison page as a file.

python docs/save_figure.py runs/quickstart/report.html Health docs/tutorials/report_health.svg
"""

import base64
import pathlib
import re
import sys


def figure(page: str, heading: str) -> bytes:
    """The picture below a heading of a page.

    Raises:
        SystemExit: the page has no picture below such a heading.
    """
    pattern = rf"<h2[^>]*>{re.escape(heading)}</h2>(?:(?!<h2).)*?<img src=\"data:[^;]+;base64,([^\"]+)\""
    found = re.search(pattern, page, re.DOTALL)
    if found is None:
        sys.exit(f"{heading!r}: the page has no figure with this heading")
    return base64.b64decode(found[1])


if __name__ == "__main__":
    source, heading, out = sys.argv[1:]
    pathlib.Path(out).write_bytes(figure(pathlib.Path(source).read_text(), heading))
