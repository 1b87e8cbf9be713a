"""Generation of tokens: a program reads the prompts, another makes one token after another with a cache.

generate(module, params, prompts, Sampling(max_new_tokens=20))

Prompts of different lengths are padded on the right. New tokens of a row overwrite its padding, so slot s of the cache
always holds position s, and windows, distances and rotations do not depend on other rows. Padding in the cache is
never attended to: until it is overwritten, it is at later positions than every query.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.masks import Causal, Full, Keys, Prefix
from ssljax.layers.multihead import empty_cache
from ssljax.layers.positions import Dynamic, LongRoPE
from ssljax.models.seq2seq import EncoderDecoder
from ssljax.models.tokens import TokenModel

_STEP = 64  # lengths are rounded up to a multiple, so that prompts of similar lengths share a program
_NO_TOKEN = -1
_WATCHED = 2  # new tokens between two calls of `watch`


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The choice of tokens. Penalty, temperature, top_k and top_p are applied in this order."""

    max_new_tokens: int = setting(64, ge=1, doc="largest number of new tokens per prompt")
    temperature: float = setting(
        0.0, ge=0, doc="divisor of the logits; 0: always the most probable token (greedy decoding)"
    )
    top_k: int | None = setting(None, ge=1, doc="draws from the k most probable tokens; None: from all")
    top_p: float | None = setting(
        None,
        gt=0,
        le=1,
        doc="draws from the smallest set of most probable tokens whose total probability reaches top_p (nucleus "
        "sampling, Holtzman et al. 2020, section 3.1); None: from all",
    )
    repetition_penalty: float = setting(
        1.0,
        gt=0,
        doc="penalty on tokens that are already in the new tokens or in the prompt of a decoder: positive logits are "
        "divided by it, negative logits are multiplied (Keskar et al. 2019, section 4.1, divide negative logits too, "
        "which makes such tokens more probable); 1: no penalty",
    )
    stop: tuple[tuple[int, ...], ...] = setting(
        (), doc="sequences of token ids; a row ends after the first that appears"
    )

    def validate(self) -> None:
        if not all(self.stop) or any(i < 0 for ids in self.stop for i in ids):
            raise ValueError("stop: has an empty sequence or a negative id, must be sequences of token ids")


def generate(
    module: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
    *,
    start: Sequence[int] = (),
    prefix: bool = False,
    first_row: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    watch: Callable[[list[np.ndarray]], None] | None = None,
) -> list[np.ndarray]:
    """Generates the continuation of each prompt, or the answer of an encoder-decoder to it.

    Compiled once for each number of prompts, length (in steps of 64) and `max_new_tokens`. Other numbers of
    `sampling` do not change the program.

    Args:
        module: a decoder, or an encoder-decoder, whose encoder reads the prompts.
        params: the parameters of the module.
        prompts: token ids, of any lengths.
        sampling: the choice of tokens; None = greedy.
        key: random key. Token t of row i is drawn with fold_in(fold_in(key, first_row + i), t).
        start: first tokens of the decoder; for an encoder-decoder only.
        prefix: the tokens of a prompt attend to each other (a prefix language model); for a decoder only.
        first_row: number of the first prompt in a longer list; the draws of a row then do not depend on its batch.
        mesh: prompts and cache are sharded over it by the rules of `ssljax.parallel`.
        watch: called with the new tokens so far, every few tokens; the tokens and the programs are the same.

    Returns:
        The new tokens of each prompt, int32 [N] with N <= `max_new_tokens`, including the stop sequence.

    Raises:
        UserError: the module generates no tokens; a prompt is empty, too long or has unknown ids; a number in
            `sampling` is not allowed.
    """
    sampling = schema.build(Sampling, dataclasses.asdict(sampling or Sampling()), "sampling")
    if not isinstance(module, TokenModel | EncoderDecoder):
        raise UserError(f"generation: got a {type(module).__name__}, must be a decoder or an encoder-decoder")
    if not (rows := [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]):
        return []
    _check(module, rows, sampling, key, start, first_row)
    max_len = module.config.max_len
    tokens, lengths = pad(rows, max_len, mesh)
    before = len(start) if isinstance(module, EncoderDecoder) else lengths.max()
    with on_mesh((tokens, lengths, _row_numbers(len(rows), len(tokens), first_row)), mesh) as arrays:
        rules, count = _rules(sampling), sampling.max_new_tokens
        module, slots = without_strict(module), _rounded(before + count, max_len)
        keys_B = _row_keys(key, arrays[2]) if sampling.temperature else None
        start_ids = np.asarray(start, np.int32)
        shape: dict[str, Any] = {"slots": slots, "count": count, "prefix": prefix, "mesh": mesh}
        carry = _begin(module, params, *arrays, start_ids, rules, keys_B, **shape)
        every = _WATCHED if watch else count
        for until in range(every, count + every, every):
            carry = _advance(module, params, carry, np.int32(min(until, count)), rules, keys_B, mesh=mesh)
            tokens, counts, done = parallel.fetch((carry[0].tokens, carry[0].counts, carry[0].done))
            made = [ids[:n].copy() for ids, n in zip(tokens[: len(rows)], counts)]  # the next call reuses the memory
            if watch:
                watch(made)
            if done.all():
                break
    return made


def pad(
    rows: Sequence[np.ndarray], max_len: int | None, mesh: jax.sharding.Mesh | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of tokens on the right; returns int32 [B, P] and their lengths int32 [B].

    P is a multiple of 64, or `max_len`. B is a multiple of the number of devices that share the batch; rows that are
    added to reach it have a single token.
    """
    shares = 1 if mesh is None else parallel.batch_devices(mesh)
    batch = -(-len(rows) // shares) * shares
    lengths = np.array([len(row) for row in rows] + [1] * (batch - len(rows)), np.int32)
    tokens = np.zeros((batch, _rounded(int(lengths.max()), max_len)), np.int32)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids
    return tokens, lengths


@contextlib.contextmanager
def on_mesh(arrays: Any, mesh: jax.sharding.Mesh | None) -> Iterator[Any]:
    """Yields arrays [B, ...] sharded over a mesh, inside its context; without a mesh, the arrays themselves."""
    if mesh is None:
        yield arrays
        return
    with parallel.mesh_context(mesh):
        yield parallel.put_batch(arrays, mesh)


class Past(NamedTuple):
    """The tokens that a model has read, for a batch of rows.

    Attributes:
        cache: keys and values, or the states of a recurrent network.
        length: int32 [B], number of tokens of each row.
        source: bool [B, M], False at padding of the encoder's input; None for a decoder.
    """

    cache: Any
    length: jax.Array
    source: jax.Array | None = None


def prefill(
    module: Any,
    params: Any,
    tokens_BxP: jax.Array,
    lengths_B: jax.Array,
    slots: int,
    start: Any = (),
    prefix: bool = False,
) -> tuple[jax.Array, Past]:
    """Reads the prompts.

    Args:
        module, params: as in `generate`.
        tokens_BxP: int, padded on the right.
        lengths_B: int32, lengths of the prompts without padding.
        slots: largest number of tokens of a row of the decoder.
        start, prefix: as in `generate`.

    Returns:
        Logits float32 [B, V] of the first new token, and the state for `step`.
    """
    apply = functools.partial(module.apply, {"params": params})
    valid = jnp.arange(tokens_BxP.shape[1]) < lengths_B[:, None]
    batch, source = len(tokens_BxP), None
    if isinstance(module, EncoderDecoder):
        c, source = module.config.decoder(), valid
        memory = apply(tokens_BxP, mask=Keys(valid), method="encode").tokens
        start_BxS = jnp.tile(jnp.asarray(start, jnp.int32), (batch, 1))
        lengths_B = jnp.full(batch, start_BxS.shape[1], jnp.int32)
        cache = empty_cache(c, c.known("depth"), batch, slots)
        options: dict[str, Any] = {"memory_mask": Keys(valid), "cache": cache, "method": "decode"}
        encoded = apply(start_BxS, memory, mask=Causal(), **options)
    else:
        mask = Prefix(lengths_B) if prefix else Causal()
        encoded = apply(tokens_BxP, mask=mask, cache=module.empty_cache(batch, slots), valid=valid)
    last = jnp.take_along_axis(encoded.tokens, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return apply(last, method="logits"), Past(encoded.cache, lengths_B, source)


def step(module: Any, params: Any, token_B: jax.Array, past: Past) -> tuple[jax.Array, Past]:
    """Reads one token of each row; returns logits float32 [B, V] of the next token and the state for the next step."""
    apply = functools.partial(module.apply, {"params": params})
    options: dict[str, Any] = {"mask": Full(), "cache": past.cache, "start": past.length}
    if past.source is None:
        encoded = apply(token_B[:, None], **options)
    else:
        encoded = apply(token_B[:, None], None, memory_mask=Keys(past.source), method="decode", **options)
    return apply(encoded.tokens[:, 0], method="logits"), past._replace(cache=encoded.cache, length=past.length + 1)


class Rules(NamedTuple):
    """A `Sampling` as arrays, so that new values need no new compilation. None = the rule is off.

    Attributes:
        temperature, top_k, top_p, penalty: scalars.
        stop: int32 [N, W], stop sequences, padded on the left with _NO_TOKEN.
    """

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    penalty: Any = None
    stop: Any = None


def choose(logits_BxV: jax.Array, rules: Rules, keys_B: Any = None, present_BxV: Any = None) -> jax.Array:
    """Chooses the next tokens int32 [B]; see `Sampling`.

    Args:
        logits_BxV: float32.
        rules: the rules to apply.
        keys_B: random keys; None without a temperature.
        present_BxV: bool, tokens that are already present; None without a penalty.
    """
    if rules.penalty is not None:
        lower = jnp.where(logits_BxV > 0, logits_BxV / rules.penalty, logits_BxV * rules.penalty)
        logits_BxV = jnp.where(present_BxV, lower, logits_BxV)
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
        before = jnp.cumsum(p_BxV, axis=-1) - p_BxV  # total probability of the more probable tokens
        sorted_BxV = jnp.where(before < rules.top_p, sorted_BxV, -jnp.inf)
    return jnp.take_along_axis(order_BxV, _draw(keys_B, sorted_BxV)[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _draw(keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)


class _State(NamedTuple):
    """The new tokens so far.

    Attributes:
        steps: int32, number of new tokens of every row that is not done.
        tokens: int32 [B, N].
        counts: int32 [B], number of new tokens of each row.
        done: bool [B].
        last: int32 [B, W], the latest tokens, to be compared with stop sequences.
        present: bool [B, V], tokens that are already present; None without a penalty.
    """

    steps: jax.Array
    tokens: jax.Array
    counts: jax.Array
    done: jax.Array
    last: jax.Array
    present: jax.Array | None


@functools.partial(jax.jit, static_argnames=("module", "slots", "count", "prefix", "mesh"))
def _begin(
    module: Any,
    params: Any,
    tokens_BxP: jax.Array,
    lengths_B: jax.Array,
    numbers_B: jax.Array,
    start: jax.Array,
    rules: Rules,
    keys_B: jax.Array | None,
    *,
    slots: int,
    count: int,
    prefix: bool,
    mesh: jax.sharding.Mesh | None,
) -> tuple[_State, Past]:
    """Reads the prompts and makes the first token. Rows whose `numbers_B` is negative make none."""
    logits_BxV, past = prefill(module, params, tokens_BxP, lengths_B, slots, start, prefix)
    read_BxR = jnp.tile(start, (len(tokens_BxP), 1)) if isinstance(module, EncoderDecoder) else tokens_BxP
    state = _first_state(numbers_B, read_BxR, past.length, logits_BxV.shape[1], rules, count)
    return _add_token(state, logits_BxV, rules, keys_B), _shard_cache(past, mesh)


@functools.partial(jax.jit, static_argnames=("module", "mesh"), donate_argnames=("carry",))
def _advance(
    module: Any,
    params: Any,
    carry: tuple[_State, Past],
    until: jax.Array,
    rules: Rules,
    keys_B: jax.Array | None,
    *,
    mesh: jax.sharding.Mesh | None,
) -> tuple[_State, Past]:
    """Makes further tokens until every row has `until` of them or is done."""

    def body(carry: tuple[_State, Past]) -> tuple[_State, Past]:
        state, past = carry
        logits_BxV, past = step(module, params, state.last[:, -1], past)
        return _add_token(state, logits_BxV, rules, keys_B), _shard_cache(past, mesh)

    def unfinished(carry: tuple[_State, Past]) -> jax.Array:
        return (carry[0].steps < until) & ~jnp.all(carry[0].done)

    return jax.lax.while_loop(unfinished, body, carry)


@jax.jit
def _row_keys(key: jax.Array, numbers_B: jax.Array) -> jax.Array:
    """Returns the random key of each row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.maximum(numbers_B, 0))


def _first_state(
    numbers_B: jax.Array, read_BxR: jax.Array, lengths_B: jax.Array, vocab_size: int, rules: Rules, count: int
) -> _State:
    """Returns the state before the first new token; `read_BxR`: tokens that the decoder has read, with padding."""
    batch = len(numbers_B)
    present = None
    if rules.penalty is not None:
        # Padding has the id V, which is dropped.
        ids = jnp.where(jnp.arange(read_BxR.shape[1]) < lengths_B[:, None], read_BxR, vocab_size)
        present = jnp.zeros((batch, vocab_size), bool).at[jnp.arange(batch)[:, None], ids].set(True, mode="drop")
    width = 1 if rules.stop is None else rules.stop.shape[1]
    return _State(
        steps=jnp.int32(0),
        tokens=jnp.zeros((batch, count), jnp.int32),
        counts=jnp.zeros(batch, jnp.int32),
        done=numbers_B < 0,
        last=jnp.full((batch, width), _NO_TOKEN - 1, jnp.int32),  # is in no stop sequence
        present=present,
    )


def _add_token(state: _State, logits_BxV: jax.Array, rules: Rules, keys_B: jax.Array | None) -> _State:
    """Returns the state after one more token of each row that is not done."""
    keys = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.steps)
    token_B = jnp.where(state.done, 0, choose(logits_BxV, rules, keys, state.present))
    last = jnp.concatenate([state.last[:, 1:], token_B[:, None]], axis=1)
    done, present = state.done, state.present
    if rules.stop is not None:
        equal = (rules.stop == last[:, None]) | (rules.stop == _NO_TOKEN)
        done = done | jnp.any(jnp.all(equal, axis=-1), axis=-1)
    if present is not None:
        present = present.at[jnp.arange(len(token_B)), token_B].set(True)
    tokens, counts = state.tokens.at[:, state.steps].set(token_B), state.counts + ~state.done
    return _State(state.steps + 1, tokens, counts, done, last, present)


def _shard_cache(past: Past, mesh: jax.sharding.Mesh | None) -> Past:
    """Shards the cache over a mesh by its logical axes."""
    if mesh is None:
        return past

    def shard(x: jax.Array) -> jax.Array:
        spec = parallel.partition_spec(past.cache.axes, x.shape, dict(mesh.shape))
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return past._replace(cache=jax.tree.map(shard, past.cache))


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


def _row_numbers(rows: int, batch: int, first_row: int) -> np.ndarray:
    """Returns the number of each row, int32 [batch]; -1 for rows that only fill up the batch."""
    index = np.arange(batch)
    return np.where(index < rows, first_row + index, -1).astype(np.int32)


def _rounded(length: int, limit: int | None) -> int:
    rounded = -(-length // _STEP) * _STEP
    return rounded if limit is None else min(rounded, limit)


def without_strict(module: Any) -> Any:
    """Returns the module with `strict=False`: fused kernels support neither padding nor single queries."""
    if not getattr(module.config, "strict", False):
        return module
    return module.clone(config=dataclasses.replace(module.config, strict=False))


def check_ids(number: int, row: np.ndarray, vocab_size: int) -> None:
    """Raises UserError if a prompt has ids outside the vocabulary."""
    wrong = row[(row < 0) | (row >= vocab_size)]
    if len(wrong):
        raise UserError(f"prompt {number}: got token {wrong[0]}, must be in 0..{vocab_size - 1} (the vocabulary)")


def check_length(number: int, row: np.ndarray, max_len: int | None) -> None:
    """Raises UserError if a prompt is longer than the model allows; None = no limit."""
    if max_len is not None and len(row) > max_len:
        raise UserError(f"prompt {number}: got {len(row)} tokens, must be at most {max_len} (model.max_len)")


def _check(
    module: Any, rows: list[np.ndarray], sampling: Sampling, key: Any, start: Sequence[int], first_row: int
) -> None:
    """Raises UserError if the prompts or the sampling do not fit the model."""
    c, both = module.config, isinstance(module, EncoderDecoder)
    if sampling.temperature and key is None:
        raise UserError(f"sampling.temperature: got {sampling.temperature}, which draws at random and needs a key")
    if both and not len(start):
        raise UserError("start: missing; the decoder of an encoder-decoder needs a first token")
    for number, row in enumerate(rows, first_row + 1):
        if not len(row):
            raise UserError(f"prompt {number}: is empty; at least one token is required")
        check_ids(number, row, c.vocab_size)
        if both:
            check_length(number, row, c.max_len)
    before = len(start) if both else max(map(len, rows))
    limit, reason = _position_limit(c)
    if before + sampling.max_new_tokens > limit:
        raise UserError(
            f"sampling.max_new_tokens: {before} tokens of the prompt and {sampling.max_new_tokens} new tokens are more "
            f"than the {limit} positions of the model ({reason})"
        )


def _position_limit(c: Any) -> tuple[float, str]:
    """Returns the largest number of positions of a decoder, and the key that sets it."""
    limit, reason = math.inf if c.max_len is None else c.max_len, "model.max_len"
    scaling = getattr(c, "rope_scaling", None)
    if isinstance(scaling, Dynamic | LongRoPE) and scaling.original_len < limit:
        # Beyond the original length a new token changes the rotation of all keys, but cached keys are already rotated.
        limit, reason = scaling.original_len, "model.rope_scaling.original_len, of dynamic scaling"
    return limit, reason
