"""Features of new data from a model in the Hugging Face format, prepared as the files of its folder say."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import data
from ssljax.base.errors import UserError, nearest
from ssljax.data.images import in_threads
from ssljax.evals import prompts
from ssljax.evals.generation import check_ids, check_length, pad
from ssljax.interop import hf
from ssljax.interop.families.vit import pixels
from ssljax.interop.preprocessing import read_preparation
from ssljax.models.clip import CLIPConfig
from ssljax.models.seq2seq import EncoderDecoder

Batch = dict[str, np.ndarray]


def features(model: hf.Model, rows: data.RawRows, feature: str, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields batches (ids and labels) and the features float32 [b, D] of their pictures or texts.

    Args:
        model: the model of a folder.
        rows: rows with a picture or a text.
        feature: "pooled": the `pooler_output` of the model if it has one, else "mean"; "mean" of all tokens; the
            "first" or the "last" token; of a pair of towers, the projected "image" (also "pooled") or "text".
        batch_size: rows that are computed at a time, at most.

    Raises:
        UserError: the model reads other data, the folder does not say how to prepare them, or there is no such feature.
    """
    text = feature == "text" or ("image" not in rows.columns and "text" in rows.columns)
    kind = "text" if text else "image"
    if kind not in rows.columns or kind not in _reads(model):
        reads = " or ".join(_reads(model)) or "none that can be prepared"
        raise UserError(f"{model.folder}: its model reads {reads}, and the source has {', '.join(rows.columns)}")
    prepare = _texts(model) if text else _pictures(model)
    compute = jax.jit(lambda params, inputs: _read(model, params, inputs))
    for start in range(0, rows.size, batch_size):
        numbers = np.arange(start, min(start + batch_size, rows.size))
        inputs = prepare(rows, np.resize(numbers, min(batch_size, rows.size)))  # filled up with copies
        found = compute(model.variables["params"], inputs)
        if feature not in found:
            raise UserError(
                f"--feature: the model gives no {feature!r}{nearest(feature, found)} (it gives: {', '.join(found)})"
            )
        yield rows.take(numbers), np.asarray(found[feature], np.float32)[: len(numbers)]


def _reads(model: hf.Model) -> tuple[str, ...]:
    """Returns the kinds of data that a model reads: "image", "text" or both."""
    if isinstance(model.config, CLIPConfig):
        return "image", "text"
    kinds = {"pixel_values": "image", "input_ids": "text"}
    required = list(model.family.inputs.required)
    return tuple(kinds[name] for name in required) if len(required) == 1 and required[0] in kinds else ()


def _pictures(model: hf.Model) -> Callable[[data.RawRows, np.ndarray], dict[str, np.ndarray]]:
    assert model.folder is not None
    prepare, config = read_preparation(model.folder), model.config
    channels = getattr(config, "image", config).image_shape[-1]

    def inputs(rows: data.RawRows, numbers: np.ndarray) -> dict[str, np.ndarray]:
        images = in_threads(lambda i: prepare(rows.picture(i, channels)), numbers.tolist())
        if len(shapes := {image.shape for image in images}) > 1:
            raise UserError(f"{model.folder}: its image processor leaves pictures of several shapes: {sorted(shapes)}")
        return {"pixel_values": np.stack(images)}

    return inputs


def _texts(model: hf.Model) -> Callable[[data.RawRows, np.ndarray], dict[str, np.ndarray]]:
    reader, config = prompts.imported(model), getattr(model.config, "text", model.config)

    def inputs(rows: data.RawRows, numbers: np.ndarray) -> dict[str, np.ndarray]:
        tokens = [reader.encode(rows.text(int(i))) for i in numbers]
        for number, ids in zip(numbers, tokens):
            check_ids(int(number) + 1, ids, config.known("vocab_size"))
            check_length(int(number) + 1, ids, config.max_len)
        ids_BxT, lengths = pad(tokens, config.max_len, None)
        return {"input_ids": ids_BxT, "attention_mask": (np.arange(ids_BxT.shape[1]) < lengths[:, None]).astype(int)}

    return inputs


def _read(model: hf.Model, params: Any, inputs: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns {feature: [B, D]} of prepared inputs."""
    apply: Any = model.module.apply
    mask = inputs.get("attention_mask")
    if isinstance(model.config, CLIPConfig):
        if mask is None:
            image = apply({"params": params}, pixels(inputs["pixel_values"]), method="image")
            return {"pooled": image, "image": image}
        text = apply({"params": params}, inputs["input_ids"], mask, method="text")
        return {"pooled": text, "text": text}
    if isinstance(model.module, EncoderDecoder):
        inputs = {**inputs, "decoder_input_ids": inputs["input_ids"][:, :1]}
    outputs = model.family.outputs(model.module, params, inputs, model.family.complete(model.hf_config))
    states = outputs.get("encoder_last_hidden_state", outputs["last_hidden_state"])
    valid = jnp.ones(states.shape[:2]) if mask is None else mask.astype(states.dtype)
    last = jnp.sum(valid, 1).astype(int) - 1
    found = {
        "mean": jnp.einsum("btd,bt->bd", states, valid) / jnp.sum(valid, 1, keepdims=True),
        "first": states[:, 0],
        "last": jnp.take_along_axis(states, last[:, None, None], 1)[:, 0],
    }
    return {"pooled": outputs.get("pooler_output", found["mean"]), **found}
