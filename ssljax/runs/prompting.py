"""Continuation of prompts and prediction of masked words by the model of a workdir or a Hugging Face folder."""

import pathlib
from collections.abc import Callable, Sequence

import jax

from ssljax import parallel
from ssljax.evals import generation, prompts
from ssljax.interop import hf
from ssljax.runs.loading import load


def language_model(folder: str | pathlib.Path, step: int | None = None) -> prompts.LanguageModel:
    """Loads a language model, with its parameters sharded over all devices.

    Args:
        folder: a workdir, or a folder in the Hugging Face format.
        step: number of the checkpoint of a workdir; None: the newest.

    Raises:
        UserError: the folder is neither of the two, or its model does not read text.
    """
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=-1))
    model = load(folder, step, mesh)
    return prompts.imported(model, mesh) if isinstance(model, hf.Model) else prompts.trained(model, mesh)


def generate(
    folder: str | pathlib.Path,
    texts: Sequence[str],
    sampling: generation.Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    special_tokens: bool = False,
    seed: int = 0,
    step: int | None = None,
    watch: Callable[[str], None] | None = None,
) -> list[str]:
    """Continues each text with the model of a folder (`language_model`); see `evals.prompts.complete`."""
    model = language_model(folder, step)
    return prompts.complete(model, texts, sampling, jax.random.key(seed), stop, special_tokens, watch)


def fill_mask(
    folder: str | pathlib.Path, texts: Sequence[str], top: int = 5, step: int | None = None
) -> list[list[list[prompts.Guess]]]:
    """Fills the masks of each text with the model of a folder (`language_model`); see `evals.prompts.fill`."""
    return prompts.fill(language_model(folder, step), texts, top)
