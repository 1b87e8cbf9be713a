"""Tokens from a model: one program that reads the prompts and then makes token after token, with a cache.

generate(module, params, prompts, Sampling(max_new_tokens=20))

Prompts of different lengths are padded on the right. A row writes each new token over its own padding, so slot s of
the cache always holds position s, whatever the row: windows, distances and rotations are those of the row by itself,
and what padding leaves in the cache lies behind every query until it is overwritten.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.masks import Causal, Full, Keys
from ssljax.layers.multihead import Cache, empty_cache
from ssljax.layers.positions import Dynamic
from ssljax.models.seq2seq import EncoderDecoder
from ssljax.models.tokens import TokenTransformer

_STEP = 64  # lengths are rounded up to a multiple, so that prompts of other lengths need no other program
_CACHE_AXES = ("layers", "batch", "length", "kv", None)
_NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; penalty, temperature, top_k and top_p are applied in this order.

    Attributes:
        max_new_tokens: a row ends after so many.
        temperature: logits are divided by it; 0: the most probable token is taken (greedy).
        top_k: only the so many most probable tokens are drawn from; None: all.
        top_p: only the fewest most probable tokens that have this probability together (nucleus sampling, Holtzman
            et al. 2020, section 3.1).
        repetition_penalty: logits of tokens that are there already are divided by it where positive (Keskar et al.
            2019, section 4.1) and multiplied where negative. The paper divides those too, which makes them more
            probable. There already: in the prompt of a decoder, or made.
        stop: sequences of token ids; a row ends with the first that it has made.
    """

    max_new_tokens: int = setting(64, ge=1)
    temperature: float = setting(0.0, ge=0)
    top_k: int | None = setting(None, ge=1)
    top_p: float | None = setting(None, gt=0, le=1)
    repetition_penalty: float = setting(1.0, gt=0)
    stop: tuple[tuple[int, ...], ...] = ()

    def validate(self) -> None:
        if not all(self.stop) or any(i < 0 for ids in self.stop for i in ids):
            raise ValueError("stop: holds an empty sequence or a negative id")


def generate(
    module: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
    *,
    start: Sequence[int] = (),
    first_row: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> list[np.ndarray]:
    """What follows each prompt.

    Compiled once for a number of prompts, a length (in steps of 64) and `max_new_tokens`; numbers in `sampling` may
    change freely.

    Args:
        module: a decoder over tokens, or an encoder-decoder, whose encoder reads the prompts.
        params: its parameters.
        prompts: token ids, of any lengths.
        sampling: how to choose tokens; None: greedily.
        key: for drawing. Row i draws token t with fold_in(fold_in(key, first_row + i), t).
        start: the tokens that the decoder of an encoder-decoder begins with.
        first_row: the number of the first prompt, so that a row draws the same in any batch.
        mesh: prompts and the cache are split over it by the rules of `ssljax.parallel`.

    Returns:
        int32 [N] for each prompt, N at most `max_new_tokens`: the new tokens, up to and with the stop sequence.

    Raises:
        UserError: the module makes no tokens, a prompt is empty, too long or holds unknown ids, or a number in
            `sampling` is impossible.
    """
    sampling = schema.build(Sampling, dataclasses.asdict(sampling or Sampling()), "sampling")
    if not isinstance(module, TokenTransformer | EncoderDecoder):
        raise UserError(f"generation: needs a decoder or an encoder-decoder, got {type(module).__name__}")
    rows = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
    if not rows:
        return []
    _check(module, rows, sampling, start, first_row)
    if sampling.temperature and key is None:
        raise UserError(f"sampling.temperature: {sampling.temperature} draws tokens at random and needs a key")
    max_len = module.config.max_len
    tokens, lengths = pad(rows, max_len, mesh)
    numbers = np.where(np.arange(len(tokens)) < len(rows), first_row + np.arange(len(tokens)), -1).astype(np.int32)
    before = len(start) if isinstance(module, EncoderDecoder) else lengths.max()
    with placed((tokens, lengths, numbers), mesh) as arrays:
        made, counts = jax.device_get(
            _program(
                without_strict(module),
                params,
                *arrays,
                np.asarray(start, np.int32),
                _rules(sampling),
                key if sampling.temperature else None,
                slots=_rounded(before + sampling.max_new_tokens, max_len),
                count=sampling.max_new_tokens,
                mesh=mesh,
            )
        )
    return [ids[:n] for ids, n in zip(made[: len(rows)], counts)]


def pad(
    rows: Sequence[np.ndarray], max_len: int | None, mesh: jax.sharding.Mesh | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as an array int32 [B, P], padded on the right, and their lengths int32 [B].

    P is a multiple of 64, or `max_len`; B is what the mesh divides, with rows of a single token at the end.
    """
    shares = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    batch = -(-len(rows) // shares) * shares
    lengths = np.array([len(row) for row in rows] + [1] * (batch - len(rows)), np.int32)
    tokens = np.zeros((batch, _rounded(int(lengths.max()), max_len)), np.int32)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids
    return tokens, lengths


@contextlib.contextmanager
def placed(arrays: Any, mesh: jax.sharding.Mesh | None) -> Iterator[Any]:
    """Arrays [B, ...] split over a mesh, inside its context; without a mesh, as they are."""
    if mesh is None:
        yield arrays
        return
    with parallel.mesh_context(mesh):
        yield jax.device_put(arrays, parallel.batch_sharding(mesh))


class Past(NamedTuple):
    """What a model has read of a batch of rows."""

    cache: Cache
    length: jax.Array  # int32 [B]: how many tokens of each row
    source: jax.Array | None = None  # bool [B, M]: what the encoder has read that is not padding


def prefill(
    module: Any, params: Any, tokens_BxP: jax.Array, lengths_B: jax.Array, slots: int, start: Any = ()
) -> tuple[jax.Array, Past]:
    """Reads prompts.

    Args:
        module, params: as for `generate`.
        tokens_BxP: int, padded on the right.
        lengths_B: int32, of the prompts without their padding.
        slots: the most tokens that a row of the decoder may come to.
        start: as for `generate`.

    Returns:
        float32 logits [B, V] of the token after each prompt, and what to give to `step`.
    """
    apply = functools.partial(module.apply, {"params": params})
    valid = jnp.arange(tokens_BxP.shape[1]) < lengths_B[:, None]
    batch, source = len(tokens_BxP), None
    if isinstance(module, EncoderDecoder):
        c, source = module.config.decoder(), valid
        memory = apply(tokens_BxP, mask=Keys(valid), method="encode").tokens
        begin = jnp.tile(jnp.asarray(start, jnp.int32), (batch, 1))
        lengths_B = jnp.full(batch, begin.shape[1], jnp.int32)
        cache = empty_cache(c, c.known("depth"), batch, slots)
        more: dict[str, Any] = {"memory_mask": Keys(valid), "cache": cache, "method": "decode"}
        encoded = apply(begin, memory, mask=Causal(), **more)
    else:
        c = module.config
        encoded = apply(tokens_BxP, mask=Causal(), cache=empty_cache(c, c.known("depth"), batch, slots))
    last = jnp.take_along_axis(encoded.tokens, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return apply(last, method="logits"), Past(encoded.cache, lengths_B, source)


def step(module: Any, params: Any, token_B: jax.Array, past: Past) -> tuple[jax.Array, Past]:
    """Reads one more token of each row: float32 logits [B, V] of the one after it, and what to give to the next."""
    apply = functools.partial(module.apply, {"params": params})
    place: dict[str, Any] = {"mask": Full(), "cache": past.cache, "start": past.length}
    if past.source is None:
        encoded = apply(token_B[:, None], **place)
    else:
        encoded = apply(token_B[:, None], None, memory_mask=Keys(past.source), method="decode", **place)
    return apply(encoded.tokens[:, 0], method="logits"), past._replace(cache=encoded.cache, length=past.length + 1)


class Rules(NamedTuple):
    """A `Sampling` as arrays; None is no rule. Other numbers make no other program."""

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    penalty: Any = None
    stop: Any = None  # int32 [N, W], padded on the left with _NO_TOKEN


def choose(logits_BxV: jax.Array, rules: Rules, keys_B: Any = None, seen_BxV: Any = None) -> jax.Array:
    """The next token int32 [B] by the rules; see `Sampling`.

    Args:
        logits_BxV: float32.
        rules: which apply.
        keys_B: random keys; None without a temperature.
        seen_BxV: bool, the tokens that are there already; None without a penalty.
    """
    if rules.penalty is not None:
        lower = jnp.where(logits_BxV > 0, logits_BxV / rules.penalty, logits_BxV * rules.penalty)
        logits_BxV = jnp.where(seen_BxV, lower, logits_BxV)
    if rules.temperature is None:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = logits_BxV / rules.temperature
    if rules.top_k is None and rules.top_p is None:
        return _draw(keys_B, logits_BxV)
    order_BxV = jnp.argsort(-logits_BxV, axis=-1, stable=True)
    sorted_BxV = jnp.take_along_axis(logits_BxV, order_BxV, axis=-1)
    if rules.top_k is not None:
        sorted_BxV = jnp.where(jnp.arange(sorted_BxV.shape[1]) < rules.top_k, sorted_BxV, -jnp.inf)
    if rules.top_p is not None:
        p_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
        before = jnp.cumsum(p_BxV, axis=-1) - p_BxV  # of all that are more probable
        sorted_BxV = jnp.where(before < rules.top_p, sorted_BxV, -jnp.inf)
    return jnp.take_along_axis(order_BxV, _draw(keys_B, sorted_BxV)[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _draw(keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)


class _State(NamedTuple):
    """Between two tokens."""

    made: jax.Array  # int32: how many tokens of each row that goes on
    tokens: jax.Array  # int32 [B, N]
    counts: jax.Array  # int32 [B]: how many tokens each row has made
    done: jax.Array  # bool [B]
    last: jax.Array  # int32 [B, W]: the newest tokens, for stop sequences
    seen: jax.Array | None  # bool [B, V]: for the penalty


@functools.partial(jax.jit, static_argnames=("module", "slots", "count", "mesh"))
def _program(
    module: Any,
    params: Any,
    tokens_BxP: jax.Array,
    lengths_B: jax.Array,
    numbers_B: jax.Array,
    start: jax.Array,
    rules: Rules,
    key: jax.Array | None,
    *,
    slots: int,
    count: int,
    mesh: jax.sharding.Mesh | None,
) -> tuple[jax.Array, jax.Array]:
    """New tokens int32 [B, count], and how many there are in each row; rows with a negative number make none."""
    batch = len(tokens_BxP)
    rows = jnp.arange(batch)
    keys_B = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.maximum(numbers_B, 0))

    def add(state: _State, logits_BxV: jax.Array) -> _State:
        keys = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.made)
        token_B = jnp.where(state.done, 0, choose(logits_BxV, rules, keys, state.seen))
        last = jnp.concatenate([state.last[:, 1:], token_B[:, None]], axis=1)
        done = state.done
        if rules.stop is not None:
            same = (rules.stop == last[:, None]) | (rules.stop == _NO_TOKEN)
            done = done | jnp.any(jnp.all(same, axis=-1), axis=-1)
        return _State(
            state.made + 1,
            state.tokens.at[:, state.made].set(token_B),
            state.counts + ~state.done,
            done,
            last,
            None if state.seen is None else state.seen.at[rows, token_B].set(True),
        )

    def place(past: Past) -> Past:
        return past if mesh is None else past._replace(cache=_place(past.cache, mesh))

    logits_BxV, past = prefill(module, params, tokens_BxP, lengths_B, slots, start)
    seen = None
    if rules.penalty is not None:
        read = jnp.tile(start, (batch, 1)) if isinstance(module, EncoderDecoder) else tokens_BxP
        real = jnp.arange(read.shape[1]) < past.length[:, None]
        size = logits_BxV.shape[1]
        seen = jnp.zeros((batch, size), bool).at[rows[:, None], jnp.where(real, read, size)].set(True, mode="drop")
    width = 1 if rules.stop is None else rules.stop.shape[1]
    state = _State(
        jnp.int32(0),
        jnp.zeros((batch, count), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        numbers_B < 0,
        jnp.full((batch, width), _NO_TOKEN - 1, jnp.int32),  # which no stop sequence holds
        seen,
    )

    def body(carry: tuple[_State, Past]) -> tuple[_State, Past]:
        state, past = carry
        logits_BxV, past = step(module, params, state.last[:, -1], past)
        return add(state, logits_BxV), place(past)

    state, _ = jax.lax.while_loop(
        lambda carry: (carry[0].made < count) & ~jnp.all(carry[0].done), body, (add(state, logits_BxV), place(past))
    )
    return state.tokens, state.counts


def _place(cache: Cache, mesh: jax.sharding.Mesh) -> Cache:
    """The cache split over the mesh by its axes."""

    def put(x: jax.Array) -> jax.Array:
        spec = parallel.partition_spec(_CACHE_AXES, x.shape, dict(mesh.shape))
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(put, cache)


def _rules(sampling: Sampling) -> Rules:
    width = max(map(len, sampling.stop), default=0)
    stop = [[_NO_TOKEN] * (width - len(ids)) + list(ids) for ids in sampling.stop]
    greedy = sampling.temperature == 0
    return Rules(
        None if greedy else np.float32(sampling.temperature),
        None if greedy or sampling.top_k is None else np.int32(sampling.top_k),
        None if greedy or sampling.top_p in (None, 1) else np.float32(sampling.top_p),
        None if sampling.repetition_penalty == 1 else np.float32(sampling.repetition_penalty),
        np.array(stop, np.int32) if stop else None,
    )


def _rounded(length: int, most: int | None) -> int:
    rounded = -(-length // _STEP) * _STEP
    return rounded if most is None else min(rounded, most)


def without_strict(module: Any) -> Any:
    """The module free to take any kernel: padding, and one query at a time, are not for the fused ones."""
    return module.clone(config=dataclasses.replace(module.config, strict=False))


def check_ids(number: int, row: np.ndarray, vocab_size: int) -> None:
    """UserError where a prompt holds ids that the model does not know."""
    wrong = row[(row < 0) | (row >= vocab_size)]
    if len(wrong):
        raise UserError(f"prompt {number}: got token {wrong[0]}, must be in 0..{vocab_size - 1} (the vocabulary)")


def _check(module: Any, rows: list[np.ndarray], sampling: Sampling, start: Sequence[int], first_row: int) -> None:
    """The prompts against the model (UserError)."""
    c = module.config
    both = isinstance(module, EncoderDecoder)
    if both and not len(start):
        raise UserError("start: missing; the decoder of an encoder-decoder begins with a token of its own")
    for number, row in enumerate(rows, first_row + 1):
        if not len(row):
            raise UserError(f"prompt {number}: is empty; at least one token is required")
        check_ids(number, row, c.vocab_size)
        if both and c.max_len is not None and len(row) > c.max_len:
            raise UserError(f"prompt {number}: got {len(row)} tokens, must be at most {c.max_len} (model.max_len)")
    before = len(start) if both else max(map(len, rows))
    limit, why = math.inf if c.max_len is None else c.max_len, "model.max_len"
    if isinstance(c.rope_scaling, Dynamic) and c.rope_scaling.original_len < limit:
        # Beyond it each token turns all keys before it anew, and a cache holds keys that are turned.
        limit, why = c.rope_scaling.original_len, "model.rope_scaling.original_len, of dynamic scaling"
    if before + sampling.max_new_tokens > limit:
        raise UserError(
            f"sampling.max_new_tokens: {before} tokens of the prompt and {sampling.max_new_tokens} new ones are more "
            f"than the {limit} positions of the model ({why})"
        )
