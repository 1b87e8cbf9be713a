"""Runs: the folder of a run, where it starts from, its records, and the use of a finished one."""

from ssljax.runs.assembly import Assembly, assemble
from ssljax.runs.embedding import Embedded, embed, write_embedded
from ssljax.runs.evaluation import evaluate, open_run
from ssljax.runs.finished import Finished
from ssljax.runs.inspection import Inspection, inspect
from ssljax.runs.loading import load
from ssljax.runs.prompting import fill_mask, generate, language_model
from ssljax.runs.trained import Trained, read_trained
from ssljax.runs.workdir import Workdir

__all__ = [
    "Assembly",
    "Embedded",
    "Finished",
    "Inspection",
    "Trained",
    "Workdir",
    "assemble",
    "embed",
    "evaluate",
    "fill_mask",
    "generate",
    "inspect",
    "language_model",
    "load",
    "open_run",
    "read_trained",
    "write_embedded",
]
