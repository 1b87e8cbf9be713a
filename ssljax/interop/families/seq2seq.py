"""T5, Switch Transformers, BART and PEGASUS."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.family import Family, activation, activation_back, hidden_states, token_loss
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import TRANSPOSE, Op, Rule, copy, dense, norm, readout, table
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.masks import Causal, Full, Keys

SEQ2SEQ = Inputs(
    {"input_ids": "BS"},
    {"attention_mask": "BS", "decoder_input_ids": "BT", "decoder_attention_mask": "BT", "labels": "BT"},
)


def seq2seq(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """SEQ2SEQ -> outputs of an encoder-decoder; without decoder_input_ids its decoder reads the labels, BART's else the
    input_ids, moved right."""
    tokens = inputs.get("decoder_input_ids")
    if tokens is None:
        target = inputs.get("labels", inputs["input_ids"] if theirs["model_type"] == "bart" else None)
        if target is None:
            raise UserError("decoder_input_ids: missing; it or labels must be given")
        start = jnp.full_like(target[:, :1], theirs["decoder_start_token_id"])
        tokens = jnp.concatenate([start, target[:, :-1]], axis=1)
        tokens = jnp.where(tokens == -100, theirs["pad_token_id"], tokens)
    valid, seen = inputs.get("attention_mask"), inputs.get("decoder_attention_mask")
    mask = Full() if valid is None else Keys(valid)
    variables = {"params": params}
    encoded = module.apply(variables, inputs["input_ids"], mask=mask, states=True, method="encode")
    causal = Causal() if seen is None else Causal() & Keys(seen)
    decoded = module.apply(
        variables, tokens, encoded.tokens, mask=causal, memory_mask=mask, states=True, method="decode"
    )
    logits = module.apply(variables, decoded.tokens, method="logits")
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
                out["loss"] += theirs["router_z_loss_coef"] * z + theirs["router_aux_loss_coef"] * balance
    return out


def _router_losses(router_LxBxTxE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean square of logsumexp (Zoph 2022, eq. 5); experts x sum of shares x probabilities, each example its own."""
    z = jnp.mean(jnp.square(jax.nn.logsumexp(router_LxBxTxE, -1)))
    p, experts = jax.nn.softmax(router_LxBxTxE, -1), router_LxBxTxE.shape[-1]
    chosen = jax.nn.one_hot(jnp.argmax(p, -1), experts)
    shares_BxE, means_BxE = (jnp.mean(x, axis=(0, 2)) for x in (chosen, p))
    return z, experts**2 * jnp.mean(shares_BxE * means_BxE)


def _t5(config: Any) -> list[Rule]:
    rules = [*table("embed", "shared"), *readout_of("decoder", "lm_head")]
    every = config.experts.every if config.experts else 1
    for side, last in (("encoder", 1), ("decoder", 2)):
        block = f"{side}.block.{{i}}.layer"
        ends = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules += [*copy(f"{side}/stack/relative_bias", ends), *norm(f"{side}/stack/norm", f"{side}.final_layer_norm")]
        for position in range(every):
            here = f"{side}/stack/layers" + (f"/block_{position}" if every > 1 else "")
            own: list[Rule] = []
            for ours, theirs in (("attention", "0.SelfAttention"), ("cross", "1.EncDecAttention")):
                for name, letter in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
                    own += dense(f"{here}/{ours}/{name}", f"{block}.{theirs}.{letter}")
            own += norm(f"{here}/attention_norm", f"{block}.0.layer_norm")
            own += norm(f"{here}/cross_norm", f"{block}.1.layer_norm") if side == "decoder" else []
            own += norm(f"{here}/mlp_norm", f"{block}.{last}.layer_norm")
            inner = f"{block}.{last}.{'mlp' if config.experts else 'DenseReluDense'}"
            gated = ("gate", "wi_0"), ("in", "wi_1"), ("out", "wo")
            for name, theirs in gated if "glu" in config.activation else (("in", "wi"), ("out", "wo")):
                own += dense(f"{here}/mlp/{name}", f"{inner}.{theirs}")
                own += [Rule((f"{here}/mlp/{name}",), f"{inner}.experts.expert_{{e}}.{theirs}.weight", TRANSPOSE)]
            own += [Rule((f"{here}/mlp/router",), f"{inner}.router.classifier.weight", TRANSPOSE)]
            rules += [rule._replace(step=every, shift=position) for rule in own]
    return rules


def readout_of(side: str, theirs: str) -> list[Rule]:
    return [rule._replace(ours=(f"{side}/{rule.ours[0]}",)) for rule in readout(theirs)]


T5_KEYS = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "depth": "num_layers",
    "decoder_depth": "num_decoder_layers",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "norm_eps": "layer_norm_epsilon",
}


def _read_t5(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kind = theirs["feed_forward_proj"]
    gated, act = kind.startswith("gated-"), kind.removeprefix("gated-")
    act = "gelu_new" if kind == "gated-gelu" else act
    scaled = theirs.get("scale_decoder_outputs")
    scaled = theirs["tie_word_embeddings"] if scaled is None else scaled
    return {
        "activation": activation(act, "feed_forward_proj", gated),
        "relative_buckets": [theirs[f"relative_attention_{name}"] for name in ("num_buckets", "max_distance")],
        "tied": theirs["tie_word_embeddings"],
        "readout_scale": theirs["d_model"] ** -0.5 if scaled else None,
    }


def _write_t5(ours: Any) -> dict[str, Any]:
    act = {"gelu_tanh": "gelu_new", "geglu_tanh": "gelu"}.get(ours.activation) or activation_back(ours.activation)
    return {
        "feed_forward_proj": f"gated-{act}" if "glu" in ours.activation else act,
        "relative_attention_num_buckets": ours.relative_buckets[0],
        "relative_attention_max_distance": ours.relative_buckets[1],
        "tie_word_embeddings": ours.tied,
        "scale_decoder_outputs": ours.readout_scale is not None,
        "num_decoder_layers": ours.decoder().depth,
    }


_NO_LIMIT = 1 << 20  # tokens of an expert: more than any sequence has


def _read_switch(theirs: Mapping[str, Any]) -> dict[str, Any]:
    steps = {_sparse_step(theirs, side) for side in ("encoder", "decoder")}
    if len(steps) > 1:
        raise UserError("config.json: decoder_sparse_step: only that of the encoder is supported")
    (step,) = steps
    capacity = theirs["expert_capacity"]
    experts = {"count": theirs["num_experts"], "slots": capacity if capacity < _NO_LIMIT else None}
    values = _read_t5({**theirs, "feed_forward_proj": theirs["dense_act_fn"], "scale_decoder_outputs": None})
    experts |= {"top_k": 1, "normalize": False, "every": step, "place": min(step - 1, 1)}
    return {**values, "experts": experts}


def _sparse_step(theirs: Mapping[str, Any], side: str) -> int:
    """Blocks 1, 1 + step, 1 + 2 step, ... have experts; all of them where it is 1."""
    layers = theirs["num_layers"] if side == "encoder" else theirs["num_decoder_layers"] or theirs["num_layers"]
    sparse = theirs[f"num_sparse_{side}_layers"]
    return theirs[f"{side}_sparse_step"] or (layers // sparse if sparse else layers)


def _write_switch(ours: Any) -> dict[str, Any]:
    experts, depths = ours.experts or ExpertsConfig(), {"encoder": ours.depth, "decoder": ours.decoder().depth}
    t5 = _write_t5(ours)
    return {
        **t5,
        "dense_act_fn": t5["feed_forward_proj"],
        "num_experts": experts.count,
        "expert_capacity": experts.slots or _NO_LIMIT,
        **{f"{side}_sparse_step": experts.every for side in depths},
        **{f"num_sparse_{side}_layers": depth // experts.every for side, depth in depths.items()},
    }


BART_KEYS = {
    "vocab_size": "vocab_size",
    "max_len": "max_position_embeddings",
    "width": "d_model",
    "depth": "encoder_layers",
    "decoder_depth": "decoder_layers",
    "heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "decoder_mlp_dim": "decoder_ffn_dim",
    "embedding_scale": "scale_embedding",
    "tied": "tie_word_embeddings",
}
ROW = Op(lambda t: (t[0],), lambda parts: parts[0][None])  # [1, V]


def _bart(config: Any) -> list[Rule]:
    rules = [*table("embed", "model.shared"), Rule(("decoder/head_bias",), "final_logits_bias", ROW)]
    rules.append(Rule(("decoder/head_kernel",), "lm_head.weight", TRANSPOSE))
    for side in ("encoder", "decoder"):
        block, here = f"model.{side}.layers.{{i}}", f"{side}/stack/layers"
        for ours, theirs in (("attention", "self_attn"), ("cross", "encoder_attn")):
            for name in ("q", "k", "v", "out"):
                rules += dense(f"{here}/{ours}/{name}", f"{block}.{theirs}.{name}_proj")
            rules += norm(f"{here}/{ours}_norm", f"{block}.{theirs}_layer_norm")
        rules += [
            *table(f"{side}/position_embed", f"model.{side}.embed_positions"),
            *norm(f"{side}/embed_norm", f"model.{side}.layernorm_embedding"),
            *dense(f"{here}/mlp/in", f"{block}.fc1"),
            *dense(f"{here}/mlp/out", f"{block}.fc2"),
            *norm(f"{here}/mlp_norm", f"{block}.final_layer_norm"),
            *norm(f"{side}/stack/norm", f"model.{side}.layer_norm"),
        ]
    return rules


def _read_bart(theirs: Mapping[str, Any]) -> dict[str, Any]:
    name = "".join(theirs.get("architectures") or ())
    bare = {} if not name or "ForConditionalGeneration" in name else {"readout_bias": False}
    return {"activation": activation(theirs["activation_function"], "activation_function"), **bare}


def _write_bart(ours: Any, kind: str) -> dict[str, Any]:
    decoder = ours.decoder()
    named = f"{kind}ForConditionalGeneration" if ours.readout_bias else f"{kind}Model"
    shape = {"decoder_layers": decoder.depth, "decoder_attention_heads": decoder.heads}
    shape |= {"decoder_ffn_dim": decoder.hidden}
    return {"architectures": [named], "activation_function": activation_back(ours.activation), **shape}


def _shared(inner: str = "") -> dict[str, str]:
    """Both sides read the same table of tokens."""
    return {f"{inner}{side}.embed_tokens.weight": f"{inner}shared.weight" for side in ("encoder", "decoder")}


T5 = Family(
    model="t5",
    keys=T5_KEYS,
    defaults={
        "model_type": "t5",
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "d_kv": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    },
    read=_read_t5,
    write=_write_t5,
    rules=_t5,
    architecture="T5ForConditionalGeneration",
    prefix="",
    outputs=seq2seq,
    inputs=SEQ2SEQ,
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative",),
    copies=_shared(),
)
SWITCH = dataclasses.replace(
    T5,
    model="switch",
    defaults={**T5.defaults, "model_type": "switch_transformers", "dense_act_fn": "relu", "expert_capacity": 64}
    | {"encoder_sparse_step": None, "decoder_sparse_step": None, "num_experts": 8, "num_decoder_layers": None}
    | {"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3}
    | {"router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001},
    read=_read_switch,
    write=_write_switch,
    architecture="SwitchTransformersForConditionalGeneration",
    only={"router_bias": False, "router_ignore_padding_tokens": False},
)
BART = Family(
    model="bart",
    keys=BART_KEYS,
    defaults={
        "model_type": "bart",
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 2,
        "pad_token_id": 1,
    },
    read=_read_bart,
    write=functools.partial(_write_bart, kind="Bart"),
    rules=_bart,
    architecture="BartForConditionalGeneration",
    prefix="model.",
    outputs=seq2seq,
    inputs=SEQ2SEQ,
    copies=_shared("model."),
    zeros=("final_logits_bias",),
)
PEGASUS = dataclasses.replace(
    BART,
    model="pegasus",
    defaults={**BART.defaults, "model_type": "pegasus", "decoder_start_token_id": 0, "pad_token_id": 0},
    write=functools.partial(_write_bart, kind="Pegasus"),
    architecture="PegasusForConditionalGeneration",
    ignored=(r"(encoder|decoder)\.embed_positions\.weight$",),
)
