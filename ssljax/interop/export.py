"""Export: the architecture of `transformers` that computes the same as a trained model.

An architecture fits if the hf_config that its family writes is read again as an equal configuration.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ssljax import models, parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.files import local_folder
from ssljax.interop import hf
from ssljax.interop.families import REGISTRY
from ssljax.interop.family import Family
from ssljax.layers import positions
from ssljax.models.mae import AutoencoderConfig
from ssljax.models.tokens import TokenConfig
from ssljax.models.vit import ViTConfig

_PADDED = ("embed/embedding", "head_kernel", "head_bias")  # parameters that `vocab_multiple` pads


def convert(source: str | pathlib.Path, folder: str | pathlib.Path, leave_out: str | None = None) -> hf.Model:
    """Checks a Hugging Face folder and writes a copy with one safetensors file and current names of tensors.

    The copy also has `ssljax.json`: the groups of a config that build the model. `leave_out`: as in `hf.load`.

    Raises:
        UserError: `hf.load` refuses the source, or source and folder are the same.
    """
    source, folder = local_folder(source, "folder of the model"), local_folder(folder, "folder to write")
    if os.path.realpath(source) == os.path.realpath(folder):
        raise UserError(f"{folder}: is the folder that is read; give another one to write")
    model = hf.load(source, leave_out=leave_out)
    hf.save(model, folder)
    hf.write_json(folder / "ssljax.json", groups(model))
    return model


def groups(model: hf.Model) -> dict[str, Any]:
    """Returns the config group `model`; for an autoencoder also `objective`, which has the decoder."""
    if isinstance(model.config, AutoencoderConfig):
        decoder = {"name": "mae", "decoder": _changed(model.config.decoder)}
        return {"model": {"name": "vit", **_changed(model.config.encoder)}, "objective": decoder}
    return {"model": {"name": model.family.model, **_changed(model.config)}}


def _changed(config: Any) -> dict[str, Any]:
    """Returns the keys that differ from the defaults of their class."""
    plain = schema.to_dict(type(config)())
    return {key: value for key, value in schema.to_dict(config).items() if key in plain and value != plain[key]}


def of_module(module: Any, params: Any, causal: bool) -> hf.Model:
    """Converts a module to the first architecture of `transformers` that computes the same.

    Args:
        module: a module of `ssljax.models`.
        params: its parameters; heads may be missing.
        causal: True if a token attends only to itself and to earlier tokens.

    Raises:
        UserError: no architecture fits; the message lists the keys that the nearest one cannot represent.
    """
    config, params = _with_table(getattr(module, "config", None), params)
    families = {kind: REGISTRY.get(kind) for kind in REGISTRY.entries}  # in the order of the registry
    own = [kind for kind, family in families.items() if models.REGISTRY.get(family.model) is type(config)]
    inputs = getattr(config, "inputs", None)
    others = [k for k, f in families.items() if f.model in models.REGISTRY and k not in own]
    others = [k for k in others if models.REGISTRY.get(families[k].model).inputs == inputs]
    reasons = {}
    for kind in sorted([*own, *others], key=lambda kind: families[kind].tower):
        family = families[kind]
        hf_config, reasons[kind] = _fit(family, config, causal)
        if not reasons[kind]:
            again = family.build_config(hf_config, "export")
            if isinstance(again, TokenConfig) and config is not None:
                # One token type computes the same as none, and a pooler may be added to every class.
                again = dataclasses.replace(again, token_types=config.token_types, extras=config.extras)
            return _filled(family, hf_config, again, params)
    if not own:
        raise UserError(f"model: {type(config).__name__} has no counterpart in the Hugging Face format")
    kind = min(own, key=lambda kind: len(reasons[kind]))
    shown = ", ".join(reasons[kind][:4]) + (f" and {len(reasons[kind]) - 4} more" if len(reasons[kind]) > 4 else "")
    raise UserError(f"{shown}: without counterpart in {kind!r}, and no other architecture of transformers fits")


def _with_table(config: Any, params: Any) -> tuple[Any, Any]:
    """Returns an image encoder with its fixed positions as a learned table, as `transformers` stores them."""
    if not isinstance(config, ViTConfig) or config.positions != "sincos":
        return config, params
    module = config.standalone()
    table = positions.sincos_2d(module.grid(module.image_shape), module.width)
    front = np.zeros((config.prefix - config.registers, module.width), table.dtype)
    return dataclasses.replace(config, positions="learned"), {**params, "positions": np.concatenate([front, table])}


def _fit(family: Family, config: Any, causal: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns the hf_config of a family, and the keys of the configuration that it cannot represent."""
    if causal != family.causal:
        return {}, [f"objective.name: attends {'to earlier tokens only' if causal else 'to both sides'}"]
    try:
        hf_config = family.write_config(config)
        return hf_config, family.unrepresented(config, hf_config)
    except (UserError, LookupError, AttributeError, TypeError) as error:  # an option without a counterpart
        return {}, [f"model: {str(error).removeprefix('export: ')}"]


def _filled(family: Family, hf_config: dict[str, Any], config: Any, params: Any) -> hf.Model:
    """Returns the model with its parameters, without rows that only pad the vocabulary."""
    module = config.standalone()
    shapes = hf.flat(parallel.unboxed(jax.eval_shape(module.initial, jax.random.key(0))["params"]))
    values = {name: np.asarray(value) for name, value in hf.flat(params).items()}
    for name, value in values.items():
        if name in _PADDED and name in shapes:
            values[name] = value[tuple(slice(size) for size in shapes[name].shape)]
    head, bare = family.heads[0].name, family.heads[-1].name
    wrong = [n for n, v in values.items() if n not in shapes or v.shape != shapes[n].shape]
    if wrong:
        raise UserError(f"{head} has no parameter like {wrong[0]} {list(values[wrong[0]].shape)}")
    missing = [name for name in shapes if name not in values]
    hf_config = {**hf_config, "dtype": "float32"}
    if missing:  # an encoder that was trained without these heads
        if "head_dense/kernel" in missing:  # then no logits are computed, and their bias is not used
            values = {name: value for name, value in values.items() if not name.startswith("head_")}
        hf_config["architectures"] = [bare]
    return hf.Model(module, {"params": hf.tree(values)}, hf_config, config, family)
