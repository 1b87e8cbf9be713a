"""Pictures and pages made from what runs wrote; reads files, knows no model."""

from ssljax.report.page import render
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, evaluation_table, print_table

__all__ = ["Run", "Table", "evaluation_table", "print_table", "read_run", "render"]
