"""ViT-MAE."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.families.vit import (
    BLOCK,
    DEFAULTS,
    LEADING,
    OWN_KEYS,
    VIT,
    encoder,
    pixels,
    read,
    write,
)
from ssljax.interop.family import hidden_states
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import Rule, blocks, dense, norm, under
from ssljax.views import patches as patching


def _mae(config: Any) -> list[Rule]:
    return [
        *under("encoder", "", encoder(config.encoder, "vit.")),
        *dense("decoder/embed", "decoder.decoder_embed"),
        Rule(("decoder/mask_token",), "decoder.mask_token", LEADING),
        Rule(("decoder/positions",), "decoder.decoder_pos_embed", LEADING),
        *blocks("decoder.decoder_layers.{i}", BLOCK, "decoder/stack/layers"),
        *norm("decoder/stack/norm", "decoder.decoder_norm"),
        *dense("decoder/head", "decoder.decoder_pred"),
    ]


def autoencoder(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """pixel_values, noise [B, N] -> outputs of ViT-MAE; the patches of the smallest noise are kept."""
    images, noise = pixels(inputs["pixel_values"]), inputs["noise"]
    order = jnp.argsort(noise, axis=1)
    keep = order[:, : int(noise.shape[1] * (1 - theirs["mask_ratio"]))]
    restore = jnp.argsort(order, axis=1)
    mask = (restore >= keep.shape[1]).astype(jnp.float32)
    encoded, logits = module.apply({"params": params}, images, keep, states=True)
    target = found = patching.patchify(images, module.config.encoder.patch_size)
    if theirs.get("norm_pix_loss"):
        target = patching.normalize_patches(target)
    errors = jnp.mean(jnp.square(logits - target), axis=-1)
    out = {"last_hidden_state": jnp.concatenate([encoded.prefix, encoded.tokens], axis=1), "mask": mask}
    out |= {"ids_restore": restore}
    out |= {f"base.{name}": value for name, value in out.items()}
    out |= hidden_states(encoded.states, None) | {"logits": logits, "patchify": found}
    return out | {"loss": jnp.sum(errors * mask) / jnp.sum(mask)}


def _read_mae(theirs: Mapping[str, Any]) -> dict[str, Any]:
    both = read(theirs, pooled=False)
    same = {name: theirs[key] for name, key in OWN_KEYS.items()}
    own = {"pool": "cls", "positions": "learned", **both, **same}  # a file holds its fixed positions
    names = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
    names |= {"mlp_dim": "intermediate_size"}
    decoder = {ours: theirs[f"decoder_{key}"] for ours, key in names.items()}
    shared = {name: both[name] for name in ("activation", "bias_except")} | {"norm_eps": theirs["layer_norm_eps"]}
    return {
        "encoder": {"preset": None, **own},
        "decoder": {"preset": None, "positions": "learned", **shared, **decoder},
    }


def _write_mae(ours: Any) -> dict[str, Any]:
    encoder, decoder = ours.encoder, ours.decoder
    return {
        **write(encoder),
        **{"hidden_size": encoder.width, "num_hidden_layers": encoder.depth, "num_attention_heads": encoder.heads},
        **{"intermediate_size": encoder.hidden, "layer_norm_eps": encoder.norm_eps, "patch_size": encoder.patch_size},
        **{"decoder_hidden_size": decoder.width, "decoder_num_hidden_layers": decoder.depth},
        **{"decoder_num_attention_heads": decoder.heads, "decoder_intermediate_size": decoder.hidden},
    }


MAE = dataclasses.replace(
    VIT,
    model="ssljax.models.mae:AutoencoderConfig",
    keys={},
    defaults={**DEFAULTS, "model_type": "vit_mae", "mask_ratio": 0.75, "norm_pix_loss": False}
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    | {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16}
    | {"decoder_intermediate_size": 2048},
    read=_read_mae,
    write=_write_mae,
    rules=_mae,
    architecture="ViTMAEForPreTraining",
    prefix="vit.",
    outputs=autoencoder,
    inputs=Inputs({"pixel_values": "BCHW", "noise": "BN"}, {}),
    renames=((r"decoder_encoder\.layer\.", "decoder_layers."),),
)
