"""Trained models from folders, of either kind."""

import pathlib

import jax

from ssljax.base.buckets import is_address
from ssljax.base.errors import UserError
from ssljax.base.files import local_folder, read_json
from ssljax.interop import hf
from ssljax.runs.trained import Trained, read_trained
from ssljax.runs.workdir import Workdir


def is_imported(folder: str | pathlib.Path) -> bool:
    """Returns True if a folder has a config.json in the Hugging Face format."""
    path = _folder(folder) / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def load(
    folder: str | pathlib.Path, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Trained | hf.Model:
    """Returns the trained model of a workdir, or a model in the Hugging Face format.

    Args:
        folder: a workdir, or a folder with config.json and *.safetensors.
        step: number of the checkpoint of a workdir; None: the newest.
        mesh: the parameters are sharded over it; None: they are on the host (a workdir) or the default device.

    Raises:
        UserError: the folder is neither of the two, or its files are damaged.
    """
    place = _folder(folder)
    if not (place / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json; it is neither a workdir nor in the Hugging Face format")
    if not is_imported(folder):
        return read_trained(folder, step, mesh)
    if step is not None:
        raise UserError(f"--step: got {step}, but {str(folder)!r} is no workdir and has no checkpoints")
    return hf.load(place, mesh=mesh)


def _folder(folder: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of a model on this machine; of an address, the mirror of the workdir there."""
    return Workdir(folder).path if is_address(folder) else local_folder(folder, "folder of the model")
