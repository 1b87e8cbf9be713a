"""Rotary positions in `hf_config`: one group `rope_parameters`, or the keys of older versions."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.codecs import BOTH
from ssljax.interop.fields import Declaration, Field, HFConfig, group, read_all, write_all

_FACTOR, _LENGTH = Field("factor", "factor"), Field("original_len", "original_max_position_embeddings")
# The fields of `rope_scaling`, by its name, which equals the `rope_type`.
_SCALINGS: dict[str, tuple[Field, ...]] = {
    "linear": (_FACTOR,),
    "dynamic": (_FACTOR, Field("original_len", "max_position_embeddings")),
    "llama3": (_FACTOR, _LENGTH, Field(("low", "high"), ("low_freq_factor", "high_freq_factor"), BOTH)),
    "yarn": (
        _FACTOR,
        _LENGTH,
        Field("truncate", "truncate"),
        *(Field(name, name) for name in ("beta_fast", "beta_slow", "attention_factor")),
    ),
}
LONGROPE: dict[str, tuple[Field, ...]] = {
    "longrope": (_LENGTH, *(Field(name, name) for name in ("short_factor", "long_factor", "attention_factor")))
}


@dataclasses.dataclass(frozen=True)
class Rotary(Declaration):
    """`rope_theta`, `rope_scaling` and, in families with `partial`, `rope_fraction`.

    theta, fraction: keys of older versions; the first that has a value is used.
    scalings: the fields of `rope_scaling`, by `rope_type`.
    """

    partial: bool = False
    theta: tuple[str, ...] = ("rope_theta",)
    fraction: tuple[str, ...] = ("partial_rotary_factor",)
    scalings: Mapping[str, tuple[Field, ...]] = dataclasses.field(default_factory=lambda: _SCALINGS)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        rope = {**group(hf_config, "rope_scaling"), **group(hf_config, "rope_parameters")}
        theta = rope.get("rope_theta") or _first(hf_config, self.theta) or 10_000.0
        fraction = rope.get("partial_rotary_factor") or _first(hf_config, self.fraction) or 1.0
        if fraction != 1 and not self.partial:
            raise UserError(f"partial_rotary_factor: {fraction} is not supported (only 1)")
        # The key beside the group has priority (Phi-3).
        rope["original_max_position_embeddings"] = hf_config.get("original_max_position_embeddings") or rope.get(
            "original_max_position_embeddings"
        )
        scaling = _read_scaling(rope, hf_config.get("max_position_embeddings"), self.scalings)
        out = {"rope_theta": float(theta), "rope_scaling": scaling}
        return {**out, "rope_fraction": fraction} if self.partial else out

    def write(self, config: Any) -> dict[str, Any]:
        kind = "default" if config.rope_scaling is None else type(config.rope_scaling).__name__.lower()
        scaling = write_all(self.scalings.get(kind, ()), config.rope_scaling)
        rope = {"rope_type": kind, "rope_theta": config.rope_theta}
        rope |= {"partial_rotary_factor": config.rope_fraction} if self.partial else {}
        # A dynamic scaling begins at the length of the model, a key outside the group, and so does Phi-3's.
        outside = ("max_position_embeddings", *[_LENGTH.hf_config] * (kind == "longrope"))
        length = {key: scaling.pop(key) for key in outside if key in scaling}
        return {"rope_parameters": rope | {key: value for key, value in scaling.items() if value is not None}, **length}


@dataclasses.dataclass(frozen=True)
class RotaryByKind(Declaration):
    """`rope_theta` of full layers and `rope_theta_local` of sliding layers; `rope_scaling` of both or of full ones.

    theta, theta_local: keys of older versions.
    scaled_local: True if the group `rope_scaling` of older versions applies to sliding layers too.
    """

    theta: str
    theta_local: str
    scaled_local: bool = True

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        rope = group(hf_config, "rope_parameters")
        older = {} if self.scaled_local else {"rope_scaling": None}
        full, local = (
            Rotary(theta=(theta,)).read({**hf_config, **changes, "rope_parameters": rope.get(kind)})
            for kind, theta, changes in (
                ("full_attention", self.theta, {}),
                ("sliding_attention", self.theta_local, older),
            )
        )
        same = full["rope_scaling"] == local["rope_scaling"]
        if not same and local["rope_scaling"] is not None:
            raise UserError("rope_parameters: sliding layers must have the scaling of full layers, or none")
        return {**full, "rope_theta_local": local["rope_theta"], "rope_scaling_local": same}

    def write(self, config: Any) -> dict[str, Any]:
        out = Rotary().write(config)
        full = out["rope_parameters"]
        scaling = full if config.rope_scaling_local else {"rope_type": "default"}
        local = {**scaling, "rope_theta": config.rope_theta_local or config.rope_theta}
        return {**out, "rope_parameters": {"full_attention": full, "sliding_attention": local}}


def _first(hf_config: HFConfig, keys: tuple[str, ...]) -> Any:
    return next((hf_config[key] for key in keys if hf_config.get(key)), None)


def _read_scaling(
    rope: Mapping[str, Any], longest: int | None, known: Mapping[str, tuple[Field, ...]]
) -> dict[str, Any] | None:
    """Returns the group `rope_scaling` of `config`, one of the `known` ones; `longest` is max_position_embeddings."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if "longrope" in known and kind in ("su", "yarn"):  # its names in early files
        kind = "longrope"
    if kind == "default":
        return None
    if kind not in known:
        raise UserError(f"rope_type {kind!r} is not supported ({', '.join(['default', *known])})")
    original = rope.get("original_max_position_embeddings") or longest
    factor = rope.get("factor") or (longest / original if longest and original else 1.0)
    full = {"truncate": True, **rope, "factor": factor, "original_max_position_embeddings": original}
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if not rope.get("attention_factor") and above and below and factor > 1:
        full["attention_factor"] = (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
    if kind == "longrope" and original and not rope.get("attention_factor"):
        full["attention_factor"] = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {"name": kind, **read_all(known[kind], {**full, "max_position_embeddings": longest})}
