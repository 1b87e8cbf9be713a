"""Outputs of `Model.forward` under the names of `transformers`, for decoders and encoders of text.

An output function takes (module, params, inputs, hf_config), inputs under the names of `transformers`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.fields import HFConfig
from ssljax.interop.inputs import Inputs
from ssljax.layers.masks import Causal, Full, Keys

InputArrays = Mapping[str, jax.Array]
Outputs = Callable[[Any, Any, InputArrays, HFConfig], dict[str, jax.Array]]
_PAIR_LABELS = ("next_sentence_label", "sentence_order_label")
CAUSAL_LM = MASKED_LM = Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "position_ids": "BT", "labels": "BT"})
TYPED = MASKED_LM.plus(token_type_ids="BT")


def causal_lm(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns logits, hidden states and loss of a decoder, for the inputs CAUSAL_LM."""
    tokens, valid = inputs["input_ids"], inputs.get("attention_mask")
    apply, offset = functools.partial(module.apply, {"params": params}), module.config.position_offset
    positions = inputs.get("position_ids")
    if positions is None and valid is not None and offset:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) * valid - 1, -offset)
    mask = Causal() if valid is None else Causal() & Keys(valid)
    encoded = apply(tokens, mask=mask, positions=positions, states=True)
    logits = apply(encoded.tokens, method="logits")
    last = apply(encoded.tokens, method="narrowed")
    out = {"logits": logits, "last_hidden_state": last, "base.last_hidden_state": last}
    out |= hidden_states(encoded.states, last)
    if "labels" in inputs:
        out["loss"] = token_loss(logits[:, :-1], inputs["labels"][:, 1:])
    if encoded.router is not None:
        experts = encoded.router.shape[-1]
        out |= {f"router_logits.{i}": layer.reshape(-1, experts) for i, layer in enumerate(encoded.router)}
        out["aux_loss"] = _balance(encoded.router, module.config.experts.top_k, valid)
        if "loss" in out:
            out["loss"] += hf_config["router_aux_loss_coef"] * out["aux_loss"]
    return out


def masked_lm(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns outputs of an encoder and its read-outs, for the inputs MASKED_LM or TYPED and labels of pairs."""
    c, apply = module.config, functools.partial(module.apply, {"params": params})
    valid, types = inputs.get("attention_mask"), inputs.get("token_type_ids")
    mask, positions = Full() if valid is None else Keys(valid), _positions(inputs, c.position_offset)
    counted = {} if valid is None else {"valid": valid.astype(bool)}
    encoded = apply(inputs["input_ids"], mask=mask, positions=positions, token_types=types, states=True, **counted)
    out = {"last_hidden_state": encoded.tokens, "base.last_hidden_state": encoded.tokens}
    out |= hidden_states(encoded.states, encoded.tokens)
    if "pooler" in c.extras:
        out |= {"pooler_output": encoded.pooled, "base.pooler_output": encoded.pooled}
    if "replaced" in c.extras:
        out["logits"] = apply(encoded.tokens, method="replaced_logits")
        if "labels" in inputs:
            out["loss"] = _replaced_loss(out["logits"], inputs["labels"], valid)
        return out
    if not c.readout_transform:  # the model has no language-modelling head
        refuse_labels(inputs, "labels", *_PAIR_LABELS)
        return out
    logits = apply(encoded.tokens, method="logits")
    out |= {"logits": logits, "prediction_logits": logits}
    if "labels" in inputs:
        out["loss"] = token_loss(logits, inputs["labels"])
    if "pair" not in c.extras:
        refuse_labels(inputs, *_PAIR_LABELS)
        return out
    pair = apply(encoded.pooled, method="pair_logits")
    out |= {"seq_relationship_logits": pair, "sop_logits": pair}
    for name in _PAIR_LABELS:
        if name in inputs and "loss" in out:
            out["loss"] += token_loss(pair, inputs[name])
    return out


def _positions(inputs: InputArrays, offset: int) -> jax.Array | None:
    """Returns positions int [B, T]; None: 0..T-1. RoBERTa skips padding, whose id is the offset minus 1."""
    if "position_ids" in inputs:
        return inputs["position_ids"] - offset
    if not offset:
        return None
    text = (inputs["input_ids"] != offset - 1).astype(jnp.int32)
    return jnp.cumsum(text, axis=1) * text - 1


def _replaced_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Returns the mean binary cross-entropy, in nats, of replaced-token detection over valid tokens (ELECTRA)."""
    weights = jnp.ones_like(labels) if valid is None else valid
    values = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(values * weights) / jnp.sum(weights)


def hidden_states(states: jax.Array, last: jax.Array | None, name: str = "hidden_states") -> dict[str, jax.Array]:
    """Returns {"hidden_states.0": ...}: the input of each block, then `last` or, if None, the output of the last."""
    out = {f"{name}.{i}": state for i, state in enumerate(states)}
    if last is not None:
        out[f"{name}.{len(states) - 1}"] = last
    return out


def refuse_labels(inputs: InputArrays, *names: str) -> None:
    """Raises UserError if labels are given that no head of the model reads."""
    for name in names:
        if name in inputs:
            raise UserError(f"{name}: is read by no head of the model")


def token_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, in nats, over labels that are not -100."""
    if labels.shape != logits.shape[:-1]:
        raise UserError(f"labels: got shape {list(labels.shape)}, must be {list(logits.shape[:-1])}")
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    counted = labels != -100
    return -jnp.sum(picked * counted) / jnp.maximum(jnp.sum(counted), 1)


def _balance(router_LxBxTxE: jax.Array, top_k: int, valid: jax.Array | None) -> jax.Array:
    """Returns experts x sum over experts of share of choices x mean probability, over all layers at once (Mixtral)."""
    experts = router_LxBxTxE.shape[-1]
    weight = jnp.ones(router_LxBxTxE.shape[:3]) * (1 if valid is None else valid)
    p = jax.nn.softmax(router_LxBxTxE, -1)
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(p, top_k)[1], experts), -2)
    shares = [jnp.einsum("lbte,lbt->e", x, weight) / jnp.sum(weight) for x in (chosen, p)]
    return experts * jnp.sum(shares[0] * shares[1])
