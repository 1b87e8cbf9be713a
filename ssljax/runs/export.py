"""The model of a run in the Hugging Face format."""

import dataclasses
import pathlib

from ssljax.base.hashing import digest
from ssljax.interop import export as hf_export
from ssljax.interop import hf
from ssljax.layers.masks import Full, is_causal
from ssljax.runs.trained import read_trained


def export(source: str | pathlib.Path, folder: str | pathlib.Path, step: int | None = None) -> hf.Model:
    """Writes the model of a workdir as a folder that `AutoModel.from_pretrained` opens.

    Args:
        source: the workdir.
        folder: the folder to write, created if missing.
        step: number of the checkpoint; None: the newest.

    Raises:
        UserError: no workdir or checkpoint, or no architecture of `transformers` computes the model; the message names
            the keys without a counterpart.
    """
    trained = read_trained(source, step)
    objective, folder = trained.objective, pathlib.Path(folder)
    causal = is_causal(getattr(objective, "attention", Full()))
    model = hf_export.of_module(objective.model, trained.model_params, causal)
    model = dataclasses.replace(model, hf_config=hf_export.with_ids(model, objective.spec), folder=trained.folder)
    run = f"objective {trained.config['objective']['name']}, step {trained.step}, run {digest(trained.identity)}"
    hf.save(model, folder, f"Trained by ssljax: {run}.")
    hf_export.write_preprocessing(objective, folder)
    return model
