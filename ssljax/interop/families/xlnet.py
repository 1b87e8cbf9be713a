"""XLNet."""

from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.codecs import ACTIVATION
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import Field, counts, required
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import HFConfig, InputArrays, hidden_states, token_loss
from ssljax.interop.rules import Op, Rule, blocks, copy, readout, table
from ssljax.layers.masks import Full, Given, Keys, Mask, Span

FIELDS = (
    *counts(vocab_size=("vocab_size", 32_000), width=("d_model", 1024), depth=("n_layer", 24), heads=("n_head", 16)),
    *counts(mlp_dim=("d_inner", 4096), head_dim="d_head"),
    Field("tied", "tie_word_embeddings", default=True),
    Field("norm_eps", "layer_norm_eps", default=1e-12),
    Field("activation", "ff_activation", ACTIVATION, "gelu"),
    required("attn_type", "bi"),
    required("bi_data", False),
    required("clamp_len", -1),
)


def _rules(config: Any) -> list[Rule]:
    block, path = "transformer.layer.{i}", "stack/layers/attention"
    merge = Op(  # [..., heads, width of a head] -> [..., width]
        lambda t: (t.reshape(*t.shape[:-2], -1),),
        lambda parts: parts[0].reshape(*parts[0].shape[:-1], config.heads, -1),
    )
    merge_transposed = Op(lambda t: (merge.read(t)[0].T,), lambda parts: merge.write([parts[0].T]))
    attention = {
        "q/kernel": "q",
        "k/kernel": "k",
        "v/kernel": "v",
        "relative/distance/kernel": "r",
        "relative/content_bias": "r_w_bias",
        "relative/distance_bias": "r_r_bias",
        "relative/segment_bias": "r_s_bias",
        "relative/segments": "seg_embed",
    }
    query = Op(lambda t: (t.reshape(-1),), lambda parts: parts[0][None, None])
    return [
        *table("embed", "transformer.word_embedding"),
        *copy("query", "transformer.mask_emb", query),
        *(Rule((f"{path}/{name}",), f"{block}.rel_attn.{tensor}", merge) for name, tensor in attention.items()),
        *copy(f"{path}/out/kernel", f"{block}.rel_attn.o", merge_transposed),
        *blocks(block, {"attention_norm": "rel_attn.layer_norm", "mlp_norm": "ff.layer_norm"}),
        *blocks(block, {"mlp/in": "ff.layer_1", "mlp/out": "ff.layer_2"}),
        *readout("lm_loss"),
    ]


INPUTS = Inputs(
    {"input_ids": "BT"},
    {"attention_mask": "BT", "token_type_ids": "BT", "perm_mask": "BTT", "target_mapping": "BPT", "labels": "BP"},
)


def _outputs(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns outputs of the query stream if there is a target_mapping, else of the content stream.

    In the content stream a token always attends to itself.
    """
    tokens, types = inputs["input_ids"], inputs.get("token_type_ids")
    query: Mask = Full() if inputs.get("attention_mask") is None else Keys(inputs["attention_mask"])
    if "perm_mask" in inputs:
        query = query & Given(inputs["perm_mask"][:, None] == 0)
    diagonal, everywhere = jnp.eye(tokens.shape[1], dtype=bool), Span(0, tokens.shape[1])
    block = query.block(everywhere, everywhere)
    content = Full() if block is None else Given(block | diagonal)
    variables, out = {"params": params}, {}
    if "target_mapping" in inputs:
        targets = jnp.argmax(inputs["target_mapping"], axis=-1)
        masks = {"content": content, "query": query}
        hidden = module.apply(variables, tokens, targets, **masks, token_types=types, method="streams")[1]
    else:
        encoded = module.apply(variables, tokens, mask=content, token_types=types, states=True)
        hidden = encoded.tokens
        out = hidden_states(encoded.states, None)
    out |= {"last_hidden_state": hidden, "base.last_hidden_state": hidden}
    out["logits"] = module.apply(variables, hidden, method="logits")
    if "labels" in inputs:
        out["loss"] = token_loss(out["logits"], inputs["labels"])
    return out


XLNET = Family(
    "xlnet",
    FIELDS,
    (Head("XLNetLMHeadModel", {"readout_bias": True}), Head("XLNetModel", {"readout_bias": False})),
    _rules,
    _outputs,
    INPUTS,
    prefix="transformer.",
)
