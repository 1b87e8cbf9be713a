"""A trained model as one of `transformers`: the architecture is chosen by what the configuration computes.

An architecture fits if its config, written from ours and read again, gives ours back: then no option of ours is lost.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ssljax import models, parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.data.rows import last_token
from ssljax.interop import hf
from ssljax.interop.families import REGISTRY
from ssljax.interop.family import Family
from ssljax.layers import positions
from ssljax.models.clip import CLIPConfig
from ssljax.models.mae import AutoencoderConfig
from ssljax.models.tokens import TokenConfig
from ssljax.models.vit import ViTConfig

_PADDED = ("embed/embedding", "head_kernel", "head_bias")  # by `vocab_multiple`


def write_preprocessing(objective: Any, folder: pathlib.Path) -> None:
    """Writes the settings of the tokenizer and of the image processor, if the data of the objective have them."""
    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        _write(folder / "tokenizer_config.json", _tokenizer_config(folder, objective.spec))
    if "image" in objective.spec.elements and hasattr(objective, "mean"):
        _write(folder / "preprocessor_config.json", _image_config(objective))


def convert(source: str | pathlib.Path, folder: str | pathlib.Path) -> hf.Model:
    """Writes a Hugging Face folder anew, checked: one safetensors file under the names of today, and `ssljax.json`, the
    groups of a config that build it.

    Raises:
        UserError: what `hf.load` raises, or both are one folder.
    """
    source, folder = pathlib.Path(source), pathlib.Path(folder)
    if source.resolve() == folder.resolve():
        raise UserError(f"{folder}: is the folder that is read; give another one to write")
    model = hf.load(source)
    hf.save(model, folder)
    _write(folder / "ssljax.json", groups(model))
    return model


def groups(model: hf.Model) -> dict[str, Any]:
    """The group `model` of a config, and of an autoencoder the group `objective`, which has the decoder."""
    if isinstance(model.ours, AutoencoderConfig):
        decoder = {"name": "mae", "decoder": _changed(model.ours.decoder)}
        return {"model": {"name": "vit", **_changed(model.ours.encoder)}, "objective": decoder}
    return {"model": {"name": model.family.model, **_changed(model.ours)}}


def _changed(config: Any) -> dict[str, Any]:
    """The keys that are not the defaults of their class."""
    plain = schema.to_dict(type(config)())
    return {key: value for key, value in schema.to_dict(config).items() if key in plain and value != plain[key]}


def of_module(module: Any, params: Any, causal: bool) -> hf.Model:
    """A model in the form of the first architecture that computes the same.

    Args:
        module: of `ssljax.models`. params: its parameters, those of heads may be missing.
        causal: whether a token sees only those before it.

    Raises:
        UserError: there is none; what the nearest one does otherwise is named.
    """
    ours, params = _with_table(getattr(module, "config", None), params)
    families = {kind: REGISTRY.get(kind) for kind in REGISTRY.entries}  # in the order of the table
    own = [kind for kind, family in families.items() if models.REGISTRY.get(family.model) is type(ours)]
    kind_of_input = getattr(ours, "inputs", None)
    others = [k for k, f in families.items() if models.REGISTRY.get(f.model).inputs == kind_of_input and k not in own]
    reasons = {}
    for kind in [*own, *others]:
        family = families[kind]
        theirs, reasons[kind] = _fit(family, ours, causal)
        if not reasons[kind]:
            back = family.built(theirs, "export")
            if isinstance(back, TokenConfig) and ours is not None:  # one type is none
                back = dataclasses.replace(back, token_types=ours.token_types)
            return _filled(family, theirs, back, params)
    if not own:
        raise UserError(f"model: {type(ours).__name__} has no counterpart in the Hugging Face format")
    kind = min(own, key=lambda kind: len(reasons[kind]))
    shown = ", ".join(reasons[kind][:4]) + (f" and {len(reasons[kind]) - 4} more" if len(reasons[kind]) > 4 else "")
    raise UserError(f"{shown}: without counterpart in {kind!r}, and no other architecture of transformers fits")


def _with_table(ours: Any, params: Any) -> tuple[Any, Any]:
    """The same encoder of images with its fixed positions as a table: there all have one."""
    if not isinstance(ours, ViTConfig) or ours.positions != "sincos":
        return ours, params
    module = ours.standalone()
    table = positions.sincos_2d(module.grid(module.image_shape), module.width)
    front = np.zeros((ours.prefix - ours.registers, module.width), table.dtype)
    return dataclasses.replace(ours, positions="learned"), {**params, "positions": np.concatenate([front, table])}


def _fit(family: Family, ours: Any, causal: bool) -> tuple[dict[str, Any], list[str]]:
    """(their config, the keys of ours that it loses)."""
    if causal != family.causal:
        return {}, [f"objective.name: attends {'to what comes before' if causal else 'to both sides'}"]
    try:
        theirs = family.config_back(ours)
        return theirs, family.lost(ours, theirs)
    except (UserError, LookupError, AttributeError, TypeError) as error:  # an option that it has no word for
        return {}, [f"model: {str(error).removeprefix('export: ')}"]


def _filled(family: Family, theirs: dict[str, Any], ours: Any, params: Any) -> hf.Model:
    """The model with the parameters that there are, rows that only pad a vocabulary left out."""
    module = ours.standalone()
    shapes = hf.flat(parallel.unboxed(jax.eval_shape(module.initial, jax.random.key(0))["params"]))
    values = {name: np.asarray(value) for name, value in hf.flat(params).items()}
    for name, value in values.items():
        if name in _PADDED and name in shapes:
            values[name] = value[tuple(slice(size) for size in shapes[name].shape)]
    wrong = [n for n, v in values.items() if n not in shapes or v.shape != shapes[n].shape]
    if wrong:
        raise UserError(f"{family.architecture} has no parameter like {wrong[0]} {list(values[wrong[0]].shape)}")
    lost = [name for name in shapes if name not in values]
    config = {**theirs, "dtype": "float32"}
    if lost:  # an encoder that was trained without these heads
        if "head_dense/kernel" in lost:  # nor is the bias of the logits of use then
            values = {name: value for name, value in values.items() if not name.startswith("head_")}
        inner = re.sub(r"(LMHead|For[A-Z]\w*?)?(Model)?$", "", family.architecture) + "Model"
        config["architectures"] = [inner]
    return hf.Model(module, {"params": hf.tree(values)}, config, ours, family)


def with_ids(model: hf.Model, spec: Any) -> dict[str, Any]:
    """Their config with the ids of the special tokens of the data `spec`.

    Raises:
        UserError: the end of a text cannot be told.
    """
    special = spec.special_ids
    ids = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if special.get(role) is not None}
    if "text_config" not in model.config:
        return {**model.config, **ids}
    if isinstance(model.ours, CLIPConfig) and model.ours.text.attention == "causal":
        ids["eos_token_id"] = end = last_token(special)
        if end is None or end == 2:
            found = "no token" if end is None else "id 2"
            raise UserError(
                f"data.tokenizer: a text ends with {found}; transformers reads the vector of a text at the first token "
                "with the id of the end, and takes 2 for the largest id"
            )
    return {**model.config, "text_config": {**model.config["text_config"], **ids}}


def _tokenizer_config(folder: pathlib.Path, spec: Any) -> dict[str, Any]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.max_len,
        "padding_side": "right",
        **{f"{role}_token": tokenizer.id_to_token(i) for role, i in spec.special_ids.items()},
    }


def _image_config(objective: Any) -> dict[str, Any]:
    height, width, channels = objective.spec.elements["image"]["shape"]
    stats = {"image_mean": objective.mean, "image_std": objective.std}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{name: list(values) * (channels if len(values) == 1 else 1) for name, values in stats.items()},
    }


def _write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
