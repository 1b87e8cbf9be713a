"""The reference models, in the folder `hf_parity` next to the one that SSLJAX_DATA names, and their outputs."""

import functools
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.interop import hf
from ssljax.interop.families import REGISTRY

FOLDER = pathlib.Path(os.environ.get("SSLJAX_DATA", "missing")).parent / "hf_parity"
CASES = sorted(
    path.parent.name for path in FOLDER.glob("*/config.json") if json.loads(path.read_text())["model_type"] in REGISTRY
)


def case(name):
    arrays = np.load(FOLDER / name / "io.npz")
    inputs = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
    outputs = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out.")}
    return inputs, {k: v for k, v in outputs.items() if not k.startswith("gen.")}, arrays


# Names of parameters in a file that are others in memory.
MEMORY = (
    (r"encoder\.relative_position_bias", "shared_position_bias"),
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)", r"attention.\1_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.mlp.fc2"),
    (r"decoder_layers\.(\d+)\.output\.dense", r"decoder_layers.\1.mlp.fc2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"encoder\.layer\.", "layers."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)


def in_memory(name, names):
    """The name of a parameter in memory for its name in a file."""
    return name if name in names else functools.reduce(lambda n, pair: re.sub(*pair, n), MEMORY, name)


def variants(expected, inputs):
    """Other calls of the same model: {name: (inputs, outputs)}."""
    out = {}
    for name in ("interp", "nomask"):
        own = {key.removeprefix(f"{name}."): value for key, value in expected.items() if key.startswith(f"{name}.")}
        images = own.pop("pixel_values", inputs.get("pixel_values"))
        if own:
            out[name] = {"pixel_values": images}, own
    return out


def meaningful(array, inputs):
    """Positions that are not padding."""
    for key in ("decoder_attention_mask", "attention_mask"):
        mask = inputs.get(key)
        if mask is not None and array.shape[:2] == mask.shape:
            return array[mask == 1]
        if mask is not None and array.ndim == 2 and len(array) == mask.size:
            return array[mask.reshape(-1) == 1]
    return array


def plain(expected):
    """Outputs of the call with all inputs."""
    return {key: value for key, value in expected.items() if not key.startswith(("interp.", "nomask."))}


def norms(name, model):
    """Norms of the gradients of the loss by transformers and by ssljax, under their names in memory."""
    inputs, expected, arrays = case(name)
    if "loss" not in expected:
        return {}, {}
    on_device = {k: jnp.asarray(v) for k, v in inputs.items()}

    def loss(params):
        return model.family.outputs(model.module, params, on_device, model.hf_config)["loss"]

    expected_norms = dict(zip(arrays["grad.names"].tolist(), arrays["grad.norms"].tolist()))
    grads = hf.tensors_of(model, jax.jit(jax.grad(loss))(model.variables["params"]))
    return expected_norms, {in_memory(key, expected_norms): np.linalg.norm(value) for key, value in grads.items()}
