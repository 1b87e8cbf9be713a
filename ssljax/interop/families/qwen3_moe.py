"""Qwen 3 with experts."""

from collections.abc import Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.codecs import Codec
from ssljax.interop.families.llama import ACT, ATTENTION_BIAS, BLOCK, ENDS, FIELDS, decoder
from ssljax.interop.family import causal_heads
from ssljax.interop.fields import Biases, Declaration, Field, HFConfig, sizes
from ssljax.interop.rules import TRANSPOSE, Rule, blocks, copy, named, readout

_WINDOW = Codec(
    lambda window, used: (("local",), window) if used and window else (("global",), None),
    lambda kinds, window: (window, "local" in kinds),
    null=True,
)


class Experts(Declaration):
    """`experts`: their number, and the layers that have them, of which a period of layers has one."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("experts",)

    @property
    def defaults(self) -> HFConfig:
        return {
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "moe_intermediate_size": 768,
            "router_aux_loss_coef": 0.001,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
        }

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        # The number has two names, of which files of newer versions have the first.
        numbers = (hf_config.get(key) for key in ("num_local_experts", "num_experts"))
        count = next((number for number in numbers if number is not None), 128)
        sparse = _sparse_layers(hf_config)
        if not count or not any(sparse):
            return {"experts": None}
        every, place = len(sparse) // sum(sparse), sparse.index(True)
        if sparse != [i % every == place for i in range(len(sparse))] or len(sparse) % every:
            key = "mlp_only_layers" if hf_config["mlp_only_layers"] else "decoder_sparse_step"
            layers = ", ".join(str(i) for i, each in enumerate(sparse) if each)
            raise UserError(f"{key}: experts in layers {layers} are not supported (only in one layer of every period)")
        experts = {
            "count": count,
            "top_k": hf_config["num_experts_per_tok"],
            "normalize": hf_config["norm_topk_prob"],
            "mlp_dim": hf_config["moe_intermediate_size"],
            "balance": hf_config["router_aux_loss_coef"],
            "every": every,
            "place": place,
        }
        return {"experts": experts}

    def write(self, config: Any) -> dict[str, Any]:
        experts, layers = config.experts, range(config.depth)
        if experts is None:
            return {"mlp_only_layers": list(layers)}
        return {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.top_k,
            "norm_topk_prob": experts.normalize,
            "moe_intermediate_size": experts.mlp_dim or config.hidden,
            "router_aux_loss_coef": experts.balance,
            "mlp_only_layers": [i for i in layers if not experts.at(i)],
        }


def _sparse_layers(hf_config: HFConfig) -> list[bool]:
    """Returns for each layer if it has experts."""
    step, dense = hf_config["decoder_sparse_step"], hf_config["mlp_only_layers"] or ()
    if step < 1:
        raise UserError(f"decoder_sparse_step: got {step}, must be at least 1")
    return [i not in dense and (i + 1) % step == 0 for i in range(hf_config["num_hidden_layers"])]


def _rules(config: Any) -> list[Rule]:
    every = config.experts.every if config.experts else 1
    paths: Sequence[str] = [f"stack/layers/block_{i}" for i in range(every)] if every > 1 else ["stack/layers"]
    rules = [rule._replace(step=every, shift=i) for i, path in enumerate(paths) for rule in _block(path)]
    return [*named(ENDS), *rules, *readout("lm_head")]


def _block(path: str) -> list[Rule]:
    """The rules of one block of a period: dense and sparse feed-forward parts, of which a block has one."""
    block, maps = "model.layers.{i}", {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
    return [
        *blocks(block, BLOCK, path),
        *copy(f"{path}/mlp/router", f"{block}.mlp.gate.weight", TRANSPOSE),
        *(Rule((f"{path}/mlp/{n}",), f"{block}.mlp.experts.{{e}}.{t}.weight", TRANSPOSE) for n, t in maps.items()),
    ]


QWEN3_MOE = decoder(
    "qwen3_moe",
    (
        *FIELDS,
        ACT,
        Field(("layer_kinds", "window"), ("sliding_window", "use_sliding_window"), _WINDOW, (4096, False)),
        Biases(ATTENTION_BIAS, bias=False),
        Experts(),
    ),
    causal_heads("Qwen3Moe"),
    rules=_rules,
    defaults={**sizes(151_936, 2048, 6144, 24, 32, 32_768), "num_key_value_heads": 4},
)
