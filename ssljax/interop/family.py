"""What a family needs to cross over: its keys there and here, its table of names, and what `forward` gives."""

import dataclasses
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.interop.inputs import Inputs
from ssljax.interop.meaning import meaning
from ssljax.interop.rules import Rule
from ssljax.layers.masks import Causal, Keys
from ssljax.models.tokens import TokenConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}
# What most of the newer configs call our keys.
KEYS = {
    "vocab_size": "vocab_size",
    "max_len": "max_position_embeddings",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "tied": "tie_word_embeddings",
}
Outputs = Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of `transformers`.

    Attributes:
        model: name in `ssljax.models`.
        keys: {our key: their key}, for those that mean the same.
        defaults: of their keys that a config.json may leave out.
        read: their config -> our other keys. write: our config -> their other keys.
        rules: our config -> the table of names.
        architecture: class name of the model with its head. classifier: that of one with a head of classes.
        prefix: of the names of the inner model, which a file of the bare model leaves out.
        renames: patterns of names, and what they become, of other versions of the format.
        variant: (their config, names of the tensors) -> the family itself or its like with another table of names.
        outputs: (module, params, inputs, their config) -> outputs, both under their names.
        inputs: that `outputs` reads. fit: (our config, inputs) -> UserError where their contents do not fit together.
        only: of their keys, the one value that is supported.
        ignored: patterns of tensors that are no parameters.
        copies: {tensor: the one that it repeats}; a file may have both or only the latter.
        zeros: tensors, all zeros, that a file may leave out.
        constants: our config -> tensors that theirs has and ours does without.
    """

    model: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[Rule]]
    architecture: str
    prefix: str
    outputs: Outputs
    inputs: Inputs
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classifier: str = ""
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda ours: {}
    variant: Callable[[Mapping[str, Any], Container[str]], "Family"] | None = None
    fit: Callable[[Any, Mapping[str, np.ndarray]], None] = lambda ours, inputs: None

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.outputs is causal_lm

    def config(self, theirs: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Our keys for their config."""
        full = {**self.defaults, **theirs}
        for key, value in self.only.items():
            if (full.get(key, value) or None) != (value or None):  # none and false are one
                raise UserError(f"{path}: {key}: {full[key]!r} is not supported (only {value!r})")
        for key in ("rope_parameters", "rope_scaling", "text_config", "vision_config"):
            if not isinstance(full.get(key), Mapping | None):
                raise UserError(f"{path}: {key}: got {full[key]!r}, must be a group of keys")
        for name, key in self.keys.items():
            value = full.get(key)
            if name != "norm_eps" and isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{path}: {key}: got {value}, must be at least 1")
        ours = {name: full[key] for name, key in self.keys.items() if full.get(key) is not None}
        preset = {"preset": None} if self.keys else {}
        return {"name": self.model, **preset, **ours, **self.read(full)}

    def built(self, theirs: Mapping[str, Any], path: str, **keys: Any) -> Any:
        """Our configuration for theirs, with keys of ours over it, resolved.

        Raises:
            UserError: it has none, or a key is missing; `path` is the file to blame.
        """
        try:
            values = self.config(theirs, path)
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]}: missing") from error
        return schema.build_whole(models.REGISTRY, in_every_stack(values, keys), path).with_preset()

    def config_back(self, ours: Any) -> dict[str, Any]:
        """Their config for ours, resolved; `lost` tells what it cannot say."""
        computed = {"kv_heads": "groups", "head_dim": "head_width", "mlp_dim": "hidden"}
        same = {key: getattr(ours, computed.get(name, name)) for name, key in self.keys.items()}
        # The defaults of special ids there fit another vocabulary.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) if isinstance(ours, TokenConfig) else {}
        classes = getattr(ours, "classes", None)
        named = [self.classifier if self.classifier and classes else self.architecture]
        return {**ids, **self.defaults, **same, "architectures": named, **self.write(ours)}

    def lost(self, ours: Any, theirs: Mapping[str, Any]) -> list[str]:
        """The keys of ours, with their values, that have other ones when their config for it is read again."""
        return _differences(meaning(ours), meaning(self.built(theirs, "export")), "model")


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> list[str]:
    """The keys with other values, "path.key: value"; of groups that both have, those within."""
    out = []
    for name, value in ours.items():
        other, where = theirs.get(name), f"{path}.{name}"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            out += _differences(value, other, where)
        elif value != other:
            out.append(f"{where}: {value!r}")
    return out


def in_every_stack(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values with keys added to their groups that are stacks of blocks, if there are such, else to themselves."""
    parts = {k: in_every_stack(v, keys) for k, v in values.items() if isinstance(v, Mapping) and "width" in v}
    return {**values, **(parts or keys)}


def activation(theirs: str, path: str, gated: bool = False) -> str:
    """Our name of an activation."""
    ours = ACTIVATIONS.get(theirs)
    if ours is None or (gated and ours not in GATES):
        raise UserError(f"config.json: {path}: {theirs!r} is not supported (supported: {', '.join(ACTIVATIONS)})")
    return GATES[ours] if gated else ours


def activation_back(ours: str) -> str:
    """Their name of an activation, of the gate where there is one."""
    plain = {gate: name for name, gate in GATES.items()}.get(ours, ours)
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(plain, plain)


def kinds_of(theirs: Sequence[str]) -> list[str]:
    """Our kinds of layers for theirs of every layer: the shortest list that repeats to them."""
    kinds = ["local" if kind == "sliding_attention" else "global" for kind in theirs]
    return next(kinds[:n] for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))


def kinds_back(ours: Any) -> list[str]:
    """Their kind of every layer."""
    names = {"local": "sliding_attention", "global": "full_attention"}
    return [names[ours.layer_kinds[i % len(ours.layer_kinds)]] for i in range(ours.depth)]


def rotary(theirs: Mapping[str, Any], partial: bool = False) -> dict[str, Any]:
    """Our keys for rotary positions, from either style of config; `partial`: a part of each head may be turned."""
    both = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    out: dict[str, Any] = {"rope_theta": float(both.get("rope_theta") or theirs.get("rope_theta") or 10_000.0)}
    fraction = both.get("partial_rotary_factor") or theirs.get("partial_rotary_factor") or 1.0
    if partial:
        out["rope_fraction"] = fraction
    elif fraction != 1:
        raise UserError(f"config.json: partial_rotary_factor: {fraction} is not supported (only 1)")
    kind, longest = both.get("rope_type") or both.get("type") or "default", theirs.get("max_position_embeddings")
    original = both.get("original_max_position_embeddings") or longest
    factor = both.get("factor") or (longest / original if longest and original else 1.0)
    if kind == "linear":
        out["rope_scaling"] = {"name": "linear", "factor": factor}
    elif kind == "dynamic":
        out["rope_scaling"] = {"name": "dynamic", "factor": factor, "original_len": longest}
    elif kind == "llama3":
        low, high = both["low_freq_factor"], both["high_freq_factor"]
        out["rope_scaling"] = {"name": "llama3", "factor": factor, "low": low, "high": high, "original_len": original}
    elif kind == "yarn":
        more = {name: both[name] for name in ("beta_fast", "beta_slow", "attention_factor") if both.get(name)}
        above, below = both.get("mscale"), both.get("mscale_all_dim")
        if "attention_factor" not in more and above and below and factor > 1:
            more["attention_factor"] = (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
        truncate = both.get("truncate", True)
        out["rope_scaling"] = {"name": "yarn", "factor": factor, "original_len": original, "truncate": truncate, **more}
    elif kind != "default":
        raise UserError(f"config.json: rope_type {kind!r} is not supported (linear, dynamic, llama3, yarn)")
    return out


def rotary_back(ours: Any) -> dict[str, Any]:
    """Their rope_parameters, and what else tells of them."""
    scaling = ours.rope_scaling
    values = {} if scaling is None else {k: v for k, v in dataclasses.asdict(scaling).items() if v is not None}
    kind = "default" if scaling is None else type(scaling).__name__.lower()
    theirs = {"low": "low_freq_factor", "high": "high_freq_factor", "original_len": "original_max_position_embeddings"}
    more = {"max_position_embeddings": values.pop("original_len")} if kind == "dynamic" else {}
    given = {theirs.get(k, k): v for k, v in values.items()}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": ours.rope_theta, **given}, **more}


def hidden_states(states: jax.Array, last: jax.Array | None, name: str = "hidden_states") -> dict[str, jax.Array]:
    """{"hidden_states.0": ...}: what each block read; at the end `last` in the place of what the last block made."""
    out = {f"{name}.{i}": state for i, state in enumerate(states)}
    if last is not None:
        out[f"{name}.{len(states) - 1}"] = last
    return out


def headless(inputs: Mapping[str, Any], *names: str) -> None:
    """UserError where labels are given for which a model has no head."""
    for name in names:
        if name in inputs:
            raise UserError(f"{name}: is read by no head of the model")


def token_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats over labels that are not -100."""
    if labels.shape != logits.shape[:-1]:
        raise UserError(f"labels: got shape {list(labels.shape)}, must be {list(logits.shape[:-1])}")
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    counted = labels != -100
    return -jnp.sum(picked * counted) / jnp.maximum(jnp.sum(counted), 1)


CAUSAL_LM = Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "position_ids": "BT", "labels": "BT"})


def causal_lm(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """CAUSAL_LM -> logits, hidden states and loss of a decoder."""
    tokens = inputs["input_ids"]
    valid = inputs.get("attention_mask")
    mask = Causal() if valid is None else Causal() & Keys(valid)
    where = inputs.get("position_ids")
    if where is None and valid is not None and module.config.position_offset:
        where = jnp.maximum(jnp.cumsum(valid, axis=1) * valid - 1, -module.config.position_offset)
    encoded = module.apply({"params": params}, tokens, mask=mask, positions=where, states=True)
    logits = module.apply({"params": params}, encoded.tokens, method="logits")
    last = module.apply({"params": params}, encoded.tokens, method="narrowed")
    out = {"logits": logits, "last_hidden_state": last, "base.last_hidden_state": last}
    out |= hidden_states(encoded.states, last)
    if "labels" in inputs:
        out["loss"] = token_loss(logits[:, :-1], inputs["labels"][:, 1:])
    if encoded.router is not None:
        experts = encoded.router.shape[-1]
        out |= {f"router_logits.{i}": layer.reshape(-1, experts) for i, layer in enumerate(encoded.router)}
        out["aux_loss"] = _balance(encoded.router, module.config.experts.top_k, valid)
        if "loss" in out:
            out["loss"] += theirs["router_aux_loss_coef"] * out["aux_loss"]
    return out


def _balance(router_LxBxTxE: jax.Array, top_k: int, valid: jax.Array | None) -> jax.Array:
    """experts x sum over them of (share of choices) x (mean probability), over all layers at once (Mixtral)."""
    experts = router_LxBxTxE.shape[-1]
    weight = jnp.ones(router_LxBxTxE.shape[:3]) * (1 if valid is None else valid)
    p = jax.nn.softmax(router_LxBxTxE, -1)
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(p, top_k)[1], experts), -2)
    shares = [jnp.einsum("lbte,lbt->e", x, weight) / jnp.sum(weight) for x in (chosen, p)]
    return experts * jnp.sum(shares[0] * shares[1])
