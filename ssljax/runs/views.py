"""Pictures and texts of what the step reads: the views that an objective makes of some training examples."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import data
from ssljax.base.exhibits import Exhibit, Grid, Texts, Tile
from ssljax.config import RunConfig
from ssljax.objectives.base import stream, views_of
from ssljax.objectives.masked.patches import PatchObjective, masked_images
from ssljax.objectives.pictures import Decode
from ssljax.parallel import MeshConfig
from ssljax.runs.assembly import parts_of

_TEXTS = ("tokens", "inputs", "target", "targets", "labels")  # names of arrays of token ids
_SHOWN = 200  # tokens of a text


def show_views(config: RunConfig, rows: int = 8) -> dict[str, Exhibit]:
    """Returns pictures or texts of the inputs of the first step.

    Images stand beside their originals, masked patches are grey. Of texts, special tokens and sentinels are visible.

    Args:
        config: the checked config.
        rows: number of examples.

    Raises:
        UserError: the parts of the config do not fit each other or the data.
    """
    parts = parts_of(dataclasses.replace(config, mesh=MeshConfig()), jax.devices()[:1])
    batch = data.device_batch(parts.open_data().batch(0))
    key = stream(jnp.uint32(config.seed), 0, "views")
    made = jax.jit(functools.partial(views_of, parts.objective))(key, batch, jnp.int32(0))
    # Cut afterwards: an example may be mixed with another one of the batch.
    inputs, original = jax.tree.map(lambda x: np.asarray(x)[:rows], (made, jax.jit(parts.objective.prepare)(batch)))
    objective = parts.objective.unwrapped
    inputs, original = (_as_images(objective, x) for x in (inputs, original))
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(inputs)}
    found: dict[str, Exhibit] = {}
    # An adversary chooses its masks while the model runs: none of them are shown.
    masked = not getattr(objective, "adversary", None)
    if images := _images(leaves, getattr(parts.objective.model, "patch_size", None) if masked else None):
        columns = {"original": original["image"], **images} if "image" in original else images
        of_sounds = objective.reads == "spectrograms"
        tiles = [[_tile(image[::-1] if of_sounds else image) for image in row] for row in zip(*columns.values())]
        what = "spectrograms (time to the right, frequency up)" if of_sounds else "images"
        found["views"] = Grid("Views", f"Training {what}, and what the step reads of them.", tiles, tuple(columns))
    if parts.spec.vocab_size is not None and "tokens" in original:
        decode = functools.partial(_readable, data.open_tokenizer(parts.config.data).decode, parts.spec)
        columns = _texts(leaves, original["tokens"])
        examples = [[(name, decode(leaf[i])) for name, leaf in columns.items()] for i in range(len(original["tokens"]))]
        found["texts"] = Texts("Texts", "Training texts, and what the step reads of them.", examples)
    return found


def _as_images(objective: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays in which masked images and spectrograms [..., T, F] are images in [0, 1]."""
    if hasattr(objective, "members"):  # a fusion, whose parts have inputs of their own
        own = {name: _as_images(part, arrays[name]) for name, part in objective.members.items() if name in arrays}
        return {**arrays, **own}
    found = dict(arrays)
    if objective.reads == "spectrograms" and "spectrogram" in found and "image" not in found:
        found["image"] = np.asarray(objective.visible(jnp.swapaxes(found["spectrogram"], -1, -2)[..., None]))
    elif isinstance(objective, PatchObjective):
        found["image"] = np.asarray(objective.visible(found["image"]))
    return found


def _tile(image: np.ndarray) -> Tile:
    return Tile(np.clip(np.asarray(image, np.float32), 0, 1))


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _texts(leaves: Mapping[str, Any], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of token ids [B, T] by their titles; the original stands alone if it is read as it is."""
    found = {name: leaf for name, leaf in leaves.items() if name.rpartition("/")[2] in _TEXTS and leaf.ndim == 2}
    ordered = sorted(found, key=lambda name: _TEXTS.index(name.rpartition("/")[2]))
    return {"original": tokens} | {name: found[name] for name in ordered if not np.array_equal(found[name], tokens)}


def _images(leaves: Mapping[str, Any], patch: int | None) -> dict[str, np.ndarray]:
    """Returns the columns of images [B, h, w, C] by their titles."""
    out: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.ndim not in (4, 5) or leaf.shape[-1] not in (1, 3):
            continue
        if leaf.ndim == 4:
            out[name] = leaf
        else:
            out |= {f"{name} {v + 1}": leaf[:, v] for v in range(leaf.shape[1])}
    mask = leaves.get("mask")
    if mask is not None and patch:  # of images [B, N], or of large crops [B, G, N]
        names = ["image"] if mask.ndim == 2 else [f"global {v + 1}" for v in range(mask.shape[1])]
        for v, name in enumerate(name for name in names if name in out):
            hidden = mask if mask.ndim == 2 else mask[:, v]
            title = "masked" if mask.ndim == 2 else f"masked {v + 1}"
            out[title] = np.asarray(masked_images(jnp.asarray(out[name]), jnp.asarray(hidden), patch))
    return out


def _readable(decode: Decode, spec: Any, tokens: Iterable[int]) -> str:
    """Returns the text of tokens; special tokens have names, and tokens beyond the tokenizer are numbers."""
    special = {number: f"[{name.upper()}]" for name, number in spec.special_ids.items() if name != "unk"}
    ids = [int(i) for i in tokens]
    while ids and ids[-1] == spec.special_ids.get("pad"):
        ids.pop()

    def sign(i: int) -> str:
        return special.get(i, f"<{i}>" if i >= spec.vocab_size else "")

    parts = []
    for signs, group in itertools.groupby(ids[:_SHOWN], lambda i: bool(sign(i))):
        run = list(group)
        parts.append(" ".join(map(sign, run)) if signs else decode(run))
    return " ".join([*parts, "..."] if len(ids) > _SHOWN else parts)
