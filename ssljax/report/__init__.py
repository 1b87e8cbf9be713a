"""Tables, figures and pages made from the files of a workdir, without any model."""

from ssljax.report.compare import Comparison, compare
from ssljax.report.console import print_table
from ssljax.report.facts import time_of
from ssljax.report.page import render
from ssljax.report.pictures import files as picture_files
from ssljax.report.pictures import pixels
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, evaluation_table

__all__ = [
    "Comparison",
    "Run",
    "Table",
    "compare",
    "evaluation_table",
    "picture_files",
    "pixels",
    "print_table",
    "read_run",
    "render",
    "time_of",
]
