"""The model of a run in the Hugging Face format."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from ssljax.base.errors import UserError
from ssljax.base.files import local_folder
from ssljax.data.rows import last_token
from ssljax.interop import hf
from ssljax.interop.export import of_module
from ssljax.layers.masks import Full, is_causal
from ssljax.models.clip import CLIPConfig
from ssljax.runs.card import Card, describe
from ssljax.runs.trained import Trained, read_trained

_BICUBIC = 3  # number of the filter in Pillow


class Exported(NamedTuple):
    """A model in the Hugging Face format, and its card."""

    model: hf.Model
    card: Card


def export(source: str | pathlib.Path, folder: str | pathlib.Path, step: int | None = None) -> Exported:
    """Writes the model of a workdir as a folder that `AutoModel.from_pretrained` opens, with a card (README.md).

    Args:
        source: the workdir.
        folder: the folder to write, created if missing.
        step: number of the checkpoint; None: the newest.

    Raises:
        UserError: no workdir or checkpoint, or no architecture of `transformers` computes the model; the message names
            the keys without a counterpart.
    """
    return write_trained(read_trained(source, step), local_folder(folder, "folder to write"))


def write_trained(trained: Trained, folder: pathlib.Path) -> Exported:
    """Writes a trained model as `export` does, which see."""
    objective = trained.objective
    causal = is_causal(getattr(objective, "attention", Full()))
    model = of_module(objective.model, trained.model_params, causal)
    model = dataclasses.replace(model, hf_config=with_ids(model, objective.spec), folder=trained.folder)
    card = describe(trained, model)
    hf.save(model, folder, card.page())
    _write_preprocessing(objective.unwrapped, folder)
    return Exported(model, card)


def _write_preprocessing(objective: Any, folder: pathlib.Path) -> None:
    """Writes the settings of the tokenizer and of the image processor, if the data of the objective have them."""
    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        hf.write_json(folder / "tokenizer_config.json", _tokenizer_config(folder, objective.spec))
    if "image" in objective.spec.elements and hasattr(objective, "mean"):
        hf.write_json(folder / "preprocessor_config.json", _preprocessor_config(objective))


def with_ids(model: hf.Model, spec: Any) -> dict[str, Any]:
    """Returns the hf_config of a model with the special tokens of the data `spec`.

    Raises:
        UserError: `transformers` would not find the end of a text.
    """
    special = spec.special_ids
    ids = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if special.get(role) is not None}
    if "text_config" not in model.hf_config:
        return {**model.hf_config, **ids}
    if isinstance(model.config, CLIPConfig) and model.config.text.attention == "causal":
        ids["eos_token_id"] = end = last_token(special)
        if end is None or end == 2:
            found = "no token" if end is None else "id 2"
            raise UserError(
                f"data.tokenizer: a text ends with {found}; transformers reads the vector of a text at its end token, "
                "and id 2 stands for the token with the largest id"
            )
    return {**model.hf_config, "text_config": {**model.hf_config["text_config"], **ids}}


def _tokenizer_config(folder: pathlib.Path, spec: Any) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json for the tokenizer.json of a folder and the data `spec`."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.max_len,
        "padding_side": "right",
        **{f"{role}_token": tokenizer.id_to_token(i) for role, i in spec.special_ids.items()},
    }


def _preprocessor_config(objective: Any) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json for an objective that normalises images.

    Of square pictures, the processor gives the pixels that evaluations see. It cuts others after it has resized them,
    while `ssljax.data.images` cuts first.
    """
    height, width, channels = objective.spec.elements["image"]["shape"]
    square = height == width  # images of another shape are neither resized nor cut
    stats = {"image_mean": objective.mean, "image_std": objective.std}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": square,
        "size": {"shortest_edge": height},
        "resample": _BICUBIC,
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{name: list(values) * (channels if len(values) == 1 else 1) for name, values in stats.items()},
    }
