"""T5, Switch Transformers, BART and PEGASUS."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.codecs import ACTIVATION, GATED, PAIR, PLAIN, Codec, names
from ssljax.interop.families.opt import BLOCK
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import Declaration, Field, HFConfig, counts, required
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import InputArrays, hidden_states, masked_lm, token_loss
from ssljax.interop.rules import LEADING, TRANSPOSE, Rule, blocks, copy, named, norm, readout, table, under
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.masks import Causal, Full, Keys

# `feed_forward_proj` is an activation, or "gated-" and the activation of a gate; "gated-gelu" means the approximation.
_GATES = {f"gated-{name}": gate for name, gate in GATED.items()} | {"gated-gelu": "geglu_tanh"}
_FEED_FORWARD = names({**PLAIN, **_GATES})
# (scale_decoder_outputs, tie_word_embeddings, d_model) <-> (readout_scale, tied, width). By default, hidden states are
# divided by sqrt(width) before a tied read-out.
_SCALED = Codec(
    lambda scaled, tied, width: (width**-0.5 if (tied if scaled is None else scaled) else None, tied, width),
    lambda scale, tied, width: (scale is not None, tied, width),
)
_SCALED_IF_TIED = Codec(
    lambda tied, width: (width**-0.5 if tied else None, tied, width), lambda scale, tied, width: (tied, width)
)
_READOUT = ("readout_scale", "tied", "width")
_BUCKETS = ("relative_attention_num_buckets", "relative_attention_max_distance")
_FIELDS = (
    *counts(vocab_size=("vocab_size", 32_128), width=("d_model", 512), depth=("num_layers", 6), heads=("num_heads", 8)),
    *counts(head_dim=("d_kv", 64), mlp_dim=("d_ff", 2048)),
    Field("norm_eps", "layer_norm_epsilon", default=1e-6),
    Field("relative_buckets", _BUCKETS, PAIR, (32, 128)),
)
_FEED_FORWARD_PART = Field("activation", "feed_forward_proj", _FEED_FORWARD, "relu")
_BOTH = (
    *counts(decoder_depth="num_decoder_layers"),
    Field("decoder_start", "decoder_start_token_id", default=0),
    Field("tied", "tie_word_embeddings", default=True),
)
T5_FIELDS = (
    *_FIELDS,
    *_BOTH,
    _FEED_FORWARD_PART,
    Field(_READOUT, ("scale_decoder_outputs", "tie_word_embeddings", "d_model"), _SCALED, (None, True, 512)),
)
_NO_LIMIT = 1 << 20  # tokens per expert; no sequence is longer


class _SwitchExperts(Declaration):
    """`experts`, in blocks 1, 1 + step, 1 + 2 step, ...; with a step of 1, in all blocks."""

    defaults = {  # noqa: RUF012 (never mutated)
        **{"num_experts": 8, "expert_capacity": 64, "router_bias": False, "num_decoder_layers": None},
        **{"encoder_sparse_step": None, "num_sparse_encoder_layers": 3},
        **{"decoder_sparse_step": None, "num_sparse_decoder_layers": 3},
    }

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        layers = hf_config["num_layers"]
        step = self._step(hf_config, "encoder", layers)
        if step != self._step(hf_config, "decoder", hf_config["num_decoder_layers"] or layers):
            raise UserError("decoder_sparse_step: must equal encoder_sparse_step")
        capacity = hf_config["expert_capacity"]
        experts = {"count": hf_config["num_experts"], "slots": capacity if capacity < _NO_LIMIT else None}
        experts |= {"top_k": 1, "normalize": False, "router_bias": hf_config["router_bias"]}
        return {"experts": {**experts, "every": step, "place": min(step - 1, 1)}}

    def _step(self, hf_config: HFConfig, side: str, layers: int) -> int:
        sparse = hf_config[f"num_sparse_{side}_layers"]
        return hf_config[f"{side}_sparse_step"] or (layers // sparse if sparse else layers)

    def write(self, config: Any) -> dict[str, Any]:
        experts = config.experts or ExpertsConfig()
        out = {"num_experts": experts.count, "expert_capacity": experts.slots or _NO_LIMIT}
        out |= {"router_bias": experts.router_bias}
        for side, depth in (("encoder", config.depth), ("decoder", config.decoder().depth)):
            out |= {f"{side}_sparse_step": experts.every, f"num_sparse_{side}_layers": depth // experts.every}
        return out


SWITCH_FIELDS = (
    *_FIELDS,
    *_BOTH,
    Field("activation", "dense_act_fn", _FEED_FORWARD, "relu"),
    Field(_READOUT, ("tie_word_embeddings", "d_model"), _SCALED_IF_TIED),
    _SwitchExperts(),
    required("router_ignore_padding_tokens", False),
)
BART_FIELDS = (
    *counts(vocab_size=("vocab_size", 50_265), max_len=("max_position_embeddings", 1024), width=("d_model", 1024)),
    *counts(depth=("encoder_layers", 12), heads=("encoder_attention_heads", 16), mlp_dim=("encoder_ffn_dim", 4096)),
    *counts(decoder_depth=("decoder_layers", 12), decoder_heads=("decoder_attention_heads", 16)),
    *counts(decoder_mlp_dim=("decoder_ffn_dim", 4096)),
    Field("decoder_start", "decoder_start_token_id", default=2),
    Field("embedding_scale", "scale_embedding", default=False),
    Field("tied", "tie_word_embeddings", default=True),
    Field("activation", "activation_function", ACTIVATION, "gelu"),
)


def _heads(name: str, bare: dict[str, Any], full: dict[str, Any]) -> tuple[Head, ...]:
    return Head(f"{name}ForConditionalGeneration", full), Head(f"{name}Model", bare)


_BART_READOUT = {"readout_bias": False}, {"readout_bias": True}
SEQ2SEQ = Inputs(
    {"input_ids": "BS"},
    {"attention_mask": "BS", "decoder_input_ids": "BT", "decoder_attention_mask": "BT", "labels": "BT"},
)


def seq2seq(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns outputs of an encoder-decoder, for the inputs SEQ2SEQ.

    Without decoder_input_ids the decoder reads the labels, shifted right. Without labels BART's decoder reads the
    input_ids.
    """
    tokens = inputs.get("decoder_input_ids")
    tokens = _shifted(inputs, hf_config, module.config.decoder_start) if tokens is None else tokens
    valid, target_valid = inputs.get("attention_mask"), inputs.get("decoder_attention_mask")
    mask = Full() if valid is None else Keys(valid)
    apply = functools.partial(module.apply, {"params": params}, states=True)
    encoded = apply(inputs["input_ids"], mask=mask, method="encode")
    causal = Causal() if target_valid is None else Causal() & Keys(target_valid)
    decoded = apply(tokens, encoded.tokens, mask=causal, memory_mask=mask, method="decode")
    logits = module.apply({"params": params}, decoded.tokens, method="logits")
    out = {"logits": logits, "last_hidden_state": decoded.tokens, "encoder_last_hidden_state": encoded.tokens}
    out |= hidden_states(encoded.states, encoded.tokens, "encoder_hidden_states")
    out |= hidden_states(decoded.states, decoded.tokens, "decoder_hidden_states")
    if "labels" in inputs:
        out["loss"] = token_loss(logits, inputs["labels"])
    if encoded.router is not None:
        for name, router_LxBxTxE in (("encoder", encoded.router), ("decoder", decoded.router)):
            out |= {f"{name}_router_logits.{i}": layer for i, layer in enumerate(router_LxBxTxE)}
            z, balance = _router_losses(router_LxBxTxE)
            out |= {f"{name}_z_loss": z, f"{name}_aux_loss": balance}
            if "loss" in out:
                out["loss"] += hf_config["router_z_loss_coef"] * z + hf_config["router_aux_loss_coef"] * balance
    return out


def _shifted(inputs: InputArrays, hf_config: HFConfig, first: int) -> jax.Array:
    """Returns tokens of the decoder, int [B, T]: the start token, then labels or input_ids without the last."""
    target = inputs.get("labels", inputs["input_ids"] if hf_config["model_type"] == "bart" else None)
    if target is None:
        raise UserError("decoder_input_ids: missing; it or labels must be given")
    start = jnp.full_like(target[:, :1], first)
    tokens = jnp.concatenate([start, target[:, :-1]], axis=1)
    return jnp.where(tokens == -100, hf_config["pad_token_id"], tokens)


def _router_losses(router_LxBxTxE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the z-loss (Zoph et al. 2022, eq. 5) and the balance loss: experts x sum of shares x probabilities."""
    z = jnp.mean(jnp.square(jax.nn.logsumexp(router_LxBxTxE, -1)))
    p, experts = jax.nn.softmax(router_LxBxTxE, -1), router_LxBxTxE.shape[-1]
    chosen = jax.nn.one_hot(jnp.argmax(p, -1), experts)
    shares_BxE, means_BxE = (jnp.mean(x, axis=(0, 2)) for x in (chosen, p))
    return z, experts**2 * jnp.mean(shares_BxE * means_BxE)


def _t5(config: Any) -> list[Rule]:
    sides = [rule for side in ("encoder", "decoder") for rule in _t5_stack(config, side, f"{side}/stack")]
    return [*table("embed", "shared"), *under("decoder/", "", readout("lm_head")), *sides]


def _t5_encoder(config: Any) -> list[Rule]:
    return [*table("embed", "shared"), *_t5_stack(config, "encoder", "stack")]


def _t5_stack(config: Any, side: str, stack: str) -> list[Rule]:
    """The rules of the encoder or the decoder, whose parameters are at the path `stack`."""
    every = config.experts.every if config.experts else 1
    first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules = [*copy(f"{stack}/relative_bias", first), *norm(f"{stack}/norm", f"{side}.final_layer_norm")]
    for position in range(every):
        path = f"{stack}/layers" + (f"/block_{position}" if every > 1 else "")
        rules += [rule._replace(step=every, shift=position) for rule in _t5_block(config, side, path)]
    return rules


def _t5_block(config: Any, side: str, path: str) -> list[Rule]:
    """The rules of one block of a period. Of the dense and sparse feed-forward parts a model has one."""
    block, last = f"{side}.block.{{i}}.layer", 1 if side == "encoder" else 2
    letters = {"q": "q", "k": "k", "v": "v", "out": "o"}
    tensors = {f"attention/{name}": f"0.SelfAttention.{letter}" for name, letter in letters.items()}
    tensors |= {f"cross/{name}": f"1.EncDecAttention.{letter}" for name, letter in letters.items()}
    tensors |= {"attention_norm": "0.layer_norm", "mlp_norm": f"{last}.layer_norm"}
    tensors |= {"cross_norm": "1.layer_norm"} if side == "decoder" else {}
    gated = {"gate": "wi_0", "in": "wi_1", "out": "wo"}
    maps = gated if "glu" in config.activation else {"in": "wi", "out": "wo"}
    inner = f"{last}.{'mlp' if config.experts else 'DenseReluDense'}"
    rules = blocks(block, {**tensors, **{f"mlp/{name}": f"{inner}.{tensor}" for name, tensor in maps.items()}}, path)
    for name, tensor in maps.items():
        rules += copy(f"{path}/mlp/{name}", f"{block}.{inner}.experts.expert_{{e}}.{tensor}.weight", TRANSPOSE)
    router = f"{block}.{inner}.router.classifier"
    rules += copy(f"{path}/mlp/router", f"{router}.weight", TRANSPOSE)
    return [*rules, *copy(f"{path}/mlp/router_bias", f"{router}.bias")]


def _bart(config: Any) -> list[Rule]:
    rules = [*table("embed", "model.shared"), *copy("decoder/head_bias", "final_logits_bias", LEADING)]
    rules += copy("decoder/head_kernel", "lm_head.weight", TRANSPOSE)
    cross = {f"cross/{name}": f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out")}
    ends = {"position_embed": "embed_positions", "embed_norm": "layernorm_embedding", "stack/norm": "layer_norm"}
    for side in ("encoder", "decoder"):
        block = f"model.{side}.layers.{{i}}"
        rules += named(ends, f"{side}/", f"model.{side}.")
        rules += blocks(block, {**BLOCK, **cross, "cross_norm": "encoder_attn_layer_norm"}, f"{side}/stack/layers")
    return rules


def _copies(prefix: str) -> dict[str, str]:
    """The token tables of encoder and decoder, which repeat the shared one."""
    return {f"{prefix}{side}.embed_tokens.weight": f"{prefix}shared.weight" for side in ("encoder", "decoder")}


_family = functools.partial(Family, outputs=seq2seq, inputs=SEQ2SEQ)
_t5_family = functools.partial(
    _family,
    rules=_t5,
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative",),
    copies=_copies(""),
)
_bart_family = functools.partial(
    _family, rules=_bart, prefix="model.", copies=_copies("model."), zeros=("final_logits_bias",)
)


def _t5_or_encoder(kind: str, name: str, fields: Sequence[Declaration], defaults: dict[str, Any]) -> Family:
    """T5 or mT5, whose files may have the encoder alone; `name` begins the names of their classes."""
    encoder = Family(
        kind,
        (*_FIELDS, _FEED_FORWARD_PART),
        (Head(f"{name}EncoderModel"),),
        _t5_encoder,
        masked_lm,
        Inputs({"input_ids": "BT"}, {"attention_mask": "BT"}),
        defaults=defaults,
        model="ssljax.models.seq2seq:T5EncoderConfig",
        ignored=(r"^decoder\.",),
        copies=_copies(""),
    )

    def variant(hf_config: HFConfig, tensors: Collection[str]) -> Family:
        named = "".join(hf_config.get("architectures") or ())
        alone = "EncoderModel" in named or (not named and not any(name.startswith("decoder.") for name in tensors))
        return encoder if alone else both

    both = _t5_family(kind, fields, _heads(name, {}, {}), defaults=defaults, model="t5", variant=variant)
    return both


T5 = _t5_or_encoder("t5", "T5", T5_FIELDS, {"pad_token_id": 0})
# In mT5 the hidden states are not scaled before the read-out, whether tied or not.
MT5 = _t5_or_encoder(
    "mt5",
    "MT5",
    (*_FIELDS, *_BOTH, _FEED_FORWARD_PART),
    {"vocab_size": 250_112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    | {"pad_token_id": 0},
)
SWITCH = _t5_family(
    "switch_transformers",
    SWITCH_FIELDS,
    _heads("SwitchTransformers", {}, {}),
    defaults={**T5.defaults, "router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001}
    | {"d_model": 768, "num_layers": 12, "num_heads": 12},
    model="switch",
)
BART = _bart_family("bart", BART_FIELDS, _heads("Bart", *_BART_READOUT), defaults={"pad_token_id": 1})
PEGASUS = _bart_family(
    "pegasus",
    BART_FIELDS,
    _heads("Pegasus", *_BART_READOUT),
    defaults={"decoder_start_token_id": 0, "pad_token_id": 0},
    ignored=(r"(encoder|decoder)\.embed_positions\.weight$",),
)
