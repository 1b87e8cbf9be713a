"""Continuation of prompts and prediction of masked words by the model of a workdir or a Hugging Face folder."""

import pathlib
from collections.abc import Sequence

import jax

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.base.files import local_folder, read_json
from ssljax.evals import generation, prompts
from ssljax.interop import hf
from ssljax.runs.trained import read_trained


def language_model(folder: str | pathlib.Path, step: int | None = None) -> prompts.LanguageModel:
    """Loads a language model, with its parameters sharded over all devices.

    Args:
        folder: a workdir, or a folder in the Hugging Face format.
        step: number of the checkpoint of a workdir; None: the newest.

    Raises:
        UserError: the folder is neither of the two, or its model does not read text.
    """
    folder = local_folder(folder, "folder of the model")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json; it is neither a workdir nor in the Hugging Face format")
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=-1))
    if "model_type" in read_json(folder / "config.json"):
        if step is not None:
            raise UserError(f"--step: got {step}, but {str(folder)!r} is no workdir and has no checkpoints")
        return prompts.imported(hf.load(folder, mesh=mesh), mesh)
    return prompts.trained(read_trained(folder, step, mesh), mesh)


def generate(
    folder: str | pathlib.Path,
    texts: Sequence[str],
    sampling: generation.Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    special_tokens: bool = False,
    seed: int = 0,
    step: int | None = None,
) -> list[str]:
    """Continues each text with the model of a folder (`language_model`); see `evals.prompts.complete`."""
    model = language_model(folder, step)
    return prompts.complete(model, texts, sampling, jax.random.key(seed), stop, special_tokens)


def fill_mask(
    folder: str | pathlib.Path, texts: Sequence[str], top: int = 5, step: int | None = None
) -> list[list[list[prompts.Guess]]]:
    """Fills the masks of each text with the model of a folder (`language_model`); see `evals.prompts.fill`."""
    return prompts.fill(language_model(folder, step), texts, top)
