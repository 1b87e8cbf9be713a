"""Trained models from folders, of either kind."""

import pathlib

from ssljax.interop import hf
from ssljax.runs.trained import Trained, read_trained
from ssljax.runs.workdir import Workdir


def load(folder: str | pathlib.Path, step: int | None = None) -> Trained | hf.Model:
    """Returns the trained model of a workdir, or a model in the Hugging Face format.

    Args:
        folder: a workdir, or a folder with config.json and *.safetensors.
        step: number of the checkpoint of a workdir; None: the newest.

    Raises:
        UserError: no such folder, or damaged files.
    """
    return read_trained(folder, step) if Workdir(folder).is_run() else hf.load(folder)
