"""XLNet."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.family import Family, activation, activation_back, hidden_states, token_loss
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import Op, Rule, dense, norm, readout, table
from ssljax.layers.masks import Full, Given, Keys, Mask, Span


def _rules(config: Any) -> list[Rule]:
    block, here = "transformer.layer.{i}.rel_attn", "stack/layers/attention"
    by_head = Op(
        lambda t: (t.reshape(*t.shape[:-2], -1),),
        lambda parts: parts[0].reshape(*parts[0].shape[:-1], config.heads, -1),
    )
    turned = Op(lambda t: (by_head.read(t)[0].T,), lambda parts: by_head.write([parts[0].T]))
    names = {"q/kernel": "q", "k/kernel": "k", "v/kernel": "v", "relative/distance/kernel": "r"}
    names |= {"relative/content_bias": "r_w_bias", "relative/distance_bias": "r_r_bias"}
    names |= {"relative/segment_bias": "r_s_bias", "relative/segments": "seg_embed"}
    ends = Op(lambda t: (t.reshape(-1),), lambda parts: parts[0][None, None])
    return [
        *table("embed", "transformer.word_embedding"),
        Rule(("query",), "transformer.mask_emb", ends),
        *(Rule((f"{here}/{ours}",), f"{block}.{theirs}", by_head) for ours, theirs in names.items()),
        Rule((f"{here}/out/kernel",), f"{block}.o", turned),
        *norm("stack/layers/attention_norm", f"{block}.layer_norm"),
        *dense("stack/layers/mlp/in", "transformer.layer.{i}.ff.layer_1"),
        *dense("stack/layers/mlp/out", "transformer.layer.{i}.ff.layer_2"),
        *norm("stack/layers/mlp_norm", "transformer.layer.{i}.ff.layer_norm"),
        *readout("lm_loss"),
    ]


INPUTS = Inputs(
    {"input_ids": "BT"},
    {"attention_mask": "BT", "token_type_ids": "BT", "perm_mask": "BTT", "target_mapping": "BPT", "labels": "BP"},
)


def _outputs(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """INPUTS -> outputs; of the queries where there is a target_mapping, else of the contents, whose tokens always see
    themselves."""
    tokens, types = inputs["input_ids"], inputs.get("token_type_ids")
    query: Mask = Full() if inputs.get("attention_mask") is None else Keys(inputs["attention_mask"])
    if "perm_mask" in inputs:
        query = query & Given(inputs["perm_mask"][:, None] == 0)
    own, everywhere = jnp.eye(tokens.shape[1], dtype=bool), Span(0, tokens.shape[1])
    block = query.block(everywhere, everywhere)
    content = Full() if block is None else Given(block | own)
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
    model="xlnet",
    keys={
        "vocab_size": "vocab_size",
        "width": "d_model",
        "depth": "n_layer",
        "heads": "n_head",
        "mlp_dim": "d_inner",
        "norm_eps": "layer_norm_eps",
        "tied": "tie_word_embeddings",
    },
    defaults={
        "model_type": "xlnet",
        "ff_activation": "gelu",
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
    },
    read=lambda theirs: {
        "activation": activation(theirs["ff_activation"], "ff_activation"),
        "readout_bias": theirs.get("architectures") != ["XLNetModel"],
    },
    write=lambda ours: {
        "ff_activation": activation_back(ours.activation),
        "d_head": ours.head_width,
        **({} if ours.readout_bias else {"architectures": ["XLNetModel"]}),
    },
    rules=_rules,
    architecture="XLNetLMHeadModel",
    prefix="transformer.",
    outputs=_outputs,
    inputs=INPUTS,
    only={"attn_type": "bi", "bi_data": False, "clamp_len": -1},
)
