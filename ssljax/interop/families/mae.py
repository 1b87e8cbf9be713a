"""ViT-MAE."""

from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base import patches as patching
from ssljax.interop.families.vit import ACT, BLOCK, IMAGE, NORM_EPS, QKV_BIAS, encoder, pixels
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import Group, constant, counts
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import HFConfig, InputArrays, hidden_states
from ssljax.interop.rules import LEADING, blocks, copy, dense, norm, under

_SHARED = (NORM_EPS, ACT, QKV_BIAS, constant("positions", "learned"))  # files contain fixed positions as a table
_ENCODER = (
    *counts(width=("hidden_size", 768), depth=("num_hidden_layers", 12), heads=("num_attention_heads", 12)),
    *counts(mlp_dim=("intermediate_size", 3072)),
    *IMAGE,
    *_SHARED,
    constant("pool", "cls"),
)
_DECODER = (
    *counts(width=("decoder_hidden_size", 512), depth=("decoder_num_hidden_layers", 8)),
    *counts(heads=("decoder_num_attention_heads", 16), mlp_dim=("decoder_intermediate_size", 2048)),
    *_SHARED,
)


def autoencoder(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns the outputs of ViT-MAE; of the N patches, those with the smallest `noise` [B, N] are kept."""
    images, noise = pixels(inputs["pixel_values"]), inputs["noise"]
    order = jnp.argsort(noise, axis=1)
    keep = order[:, : int(noise.shape[1] * (1 - hf_config["mask_ratio"]))]
    restore = jnp.argsort(order, axis=1)
    mask = (restore >= keep.shape[1]).astype(jnp.float32)
    encoded, logits = module.apply({"params": params}, images, keep, states=True)
    target = patches = patching.patchify(images, module.config.encoder.patch_size)
    if hf_config.get("norm_pix_loss"):
        target = patching.normalize_patches(target)
    errors = jnp.mean(jnp.square(logits - target), axis=-1)
    out = {"last_hidden_state": jnp.concatenate([encoded.prefix, encoded.tokens], axis=1), "mask": mask}
    out |= {"ids_restore": restore}
    out |= {f"base.{name}": value for name, value in out.items()}
    out |= hidden_states(encoded.states, None) | {"logits": logits, "patchify": patches}
    return out | {"loss": jnp.sum(errors * mask) / jnp.sum(mask)}


MAE = Family(
    "vit_mae",
    (Group("encoder", "", _ENCODER), Group("decoder", "", _DECODER)),
    (Head("ViTMAEForPreTraining"),),
    lambda config: [
        *under("encoder/", "", encoder(config.encoder, "vit.")),
        *dense("decoder/embed", "decoder.decoder_embed"),
        *copy("decoder/mask_token", "decoder.mask_token", LEADING),
        *copy("decoder/positions", "decoder.decoder_pos_embed", LEADING),
        *blocks("decoder.decoder_layers.{i}", BLOCK, "decoder/stack/layers"),
        *norm("decoder/stack/norm", "decoder.decoder_norm"),
        *dense("decoder/head", "decoder.decoder_pred"),
    ],
    autoencoder,
    Inputs({"pixel_values": "BCHW", "noise": "BN"}, {}),
    defaults={"mask_ratio": 0.75, "norm_pix_loss": False},
    model="ssljax.models.mae:AutoencoderConfig",
    prefix="vit.",
    renames=((r"decoder_encoder\.layer\.", "decoder_layers."),),
)
