"""The canonical form of a configuration: equal for configurations that compute the same, however they are written."""

import dataclasses
from typing import Any

from ssljax.layers.config import PARTS, BlockConfig
from ssljax.models.tokens import TokenConfig

# Keys on which no output depends, or which another key of the canonical form states.
_LEFT_OUT = {"preset", "dropout", "drop_path", "init", "dtype", "mlp_ratio", "bias_except", "extras"}
_LEFT_OUT |= {"vocab_multiple", "every", "heads_on", "tiled"}


def canonical(config: Any) -> dict[str, Any]:
    """Returns {key: value} of a configuration whose preset is filled in."""
    fields = [field for field in dataclasses.fields(config) if not field.metadata.get("free")]
    out = {field.name: _plain(getattr(config, field.name)) for field in fields if field.name not in _LEFT_OUT}
    if isinstance(config, BlockConfig) and config.width is not None:
        out |= _blocks(config)
    if isinstance(config, TokenConfig):
        out |= _tokens(config)
        del out["pool"]  # in `transformers` only a pooler pools, and `extras` states it
    return out


def _blocks(c: BlockConfig) -> dict[str, Any]:
    depth = c.known("depth") * c.repeats if hasattr(c, "depth") else len(c.layer_kinds)
    kinds = c.kinds(depth)
    rotates = [c.rope_layers[i % len(c.rope_layers)] for i in range(depth)]
    absent = ["norm"] * c.norm.startswith("rms") + ["readout"] * (not getattr(c, "readout_transform", False))
    out = {
        "kv_heads": c.groups,
        "head_dim": c.head_width,
        "mlp_dim": c.hidden,
        "layer_kinds": kinds,
        "window": c.window if "local" in kinds else None,
        "bias": [part for part in PARTS if c.has_bias(part) and part not in absent],
        "rope_theta_local": (c.rope_theta_local or c.rope_theta) if "local" in kinds else None,
        "rope_fraction": c.rotary_width if c.rope_theta else None,
        "rope_layers": rotates if c.rope_theta else None,
        "rope_scaling_local": c.rope_scaling_local if c.rope_scaling is not None and "local" in kinds else None,
        "qk_norm_over": c.qk_norm_over if c.qk_norm else None,
        "relative_buckets": c.relative_buckets if c.position_bias == "relative" else None,
    }
    if c.disentangled is None:
        out["attention_scale"] = c.attention_scale or c.head_width**-0.5
    if c.experts is not None:
        at, inner = [c.experts.at(i) for i in range(c.experts.every)], c.experts.mlp_dim or c.hidden
        out["experts"] = {**_plain(c.experts), "at": at, "place": None, "mlp_dim": inner}
        out["mlp_dim"] = inner if all(at) else c.hidden  # no block has the feed-forward part
    return out


def _tokens(c: TokenConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "token_types": max(c.token_types, 1),
        "embedding_map": c.embedding_map if c.embedding_dim else None,
        "readout_activation": (c.readout_activation or c.activation) if c.readout_transform else None,
    }
    if c.positions == "none":
        out |= {"max_len": None, "position_offset": None}
    if hasattr(c, "decoder"):
        decoder = c.decoder()
        out |= {"decoder_depth": decoder.depth, "decoder_heads": decoder.heads, "decoder_mlp_dim": decoder.hidden}
    return out


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, **canonical(value)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
