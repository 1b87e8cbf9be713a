"""Synthetic data of known structure: sums, sums modulo a prime, and texts of a Markov chain of known entropy."""

import functools
from collections.abc import Sequence

import numpy as np

from ssljax.data.sources import OnDemand, Table, unknown_split
from ssljax.data.splits import Split

PRIME = 97
FIRST = 31  # code of the character of 0; the last one is 127, so that each number is one byte
SUMS = {"train": 990_000, "valid": 5000, "test": 5000}
SYMBOLS = "abcdefghijklmnop"
ORDER = 2  # symbols on which the next one depends
DOCUMENTS = {"train": 4000, "valid": 200, "test": 200}
LENGTH = 5000  # symbols of a document
_BLOCK = 400  # documents that are made at a time


def modular_addition(split: Split) -> Table:
    """All pairs (a, b) below 97, as two characters, with the label (a + b) mod 97 (Power et al. 2022, section 3.1).

    A fixed random half of the 9,409 pairs is `train`, the other half `test`.
    """
    if split.name not in ("train", "test", "all"):
        raise unknown_split(split.name, ("train", "test", "all"), "builtin:modular-addition")
    order = np.random.RandomState(0).permutation(PRIME**2)
    half = PRIME**2 // 2
    rows = {"train": order[:half], "test": order[half:], "all": order}[split.name]
    a, b = np.divmod(rows, PRIME)

    def get(name: str) -> np.ndarray | list[str]:
        if name == "label":
            return ((a + b) % PRIME).astype(np.int32)
        return [chr(FIRST + x) + chr(FIRST + y) for x, y in zip(a, b)]

    first = half if split.name == "test" else 0
    return Table(
        ("text", "label"),
        get,
        ("train", "test", "all"),
        tuple(map(str, range(PRIME))),
        numbers=lambda: np.arange(first, first + len(rows)),
    )


def addition(split: Split) -> Table:
    """All sums of two numbers below 1,000, such as "347+085=2340": the digits of the sum begin with the units.

    The pairs are in a fixed random order; 990,000 are `train`, 5,000 `valid`, and 5,000 `test`.
    """
    if split.name not in (*SUMS, "all"):
        raise unknown_split(split.name, (*SUMS, "all"), "builtin:addition")
    firsts = dict(zip(SUMS, np.cumsum([0, *SUMS.values()]).tolist()))
    first, count = (0, 10**6) if split.name == "all" else (firsts[split.name], SUMS[split.name])

    def get(row: int) -> str:
        a, b = divmod(int(_pairs()[first + row]), 1000)
        return f"{a:03}+{b:03}={f'{a + b:04}'[::-1]}"

    return Table(
        ("text",),
        lambda _: OnDemand(count, get),
        (*SUMS, "all"),
        numbers=lambda: np.arange(first, first + count),
    )


@functools.cache
def _pairs() -> np.ndarray:
    return np.random.RandomState(0).permutation(10**6).astype(np.int32)


def markov(split: Split) -> Table:
    """Texts of 16 letters, each drawn given the two letters before it; see `transitions` and `entropies`."""
    if split.name not in (*DOCUMENTS, "all"):
        raise unknown_split(split.name, (*DOCUMENTS, "all"), "builtin:markov")
    firsts = dict(zip(DOCUMENTS, np.cumsum([0, *DOCUMENTS.values()]).tolist()))
    whole = split.name == "all"
    first = 0 if whole else firsts[split.name]
    count = sum(DOCUMENTS.values()) if whole else DOCUMENTS[split.name]
    return Table(
        ("text",),
        lambda _: OnDemand(count, lambda row: _block((first + row) // _BLOCK)[(first + row) % _BLOCK]),
        (*DOCUMENTS, "all"),
        numbers=lambda: np.arange(first, first + count),
    )


@functools.cache
def transitions() -> np.ndarray:
    """Probabilities [16, 16, 16] of the next symbol, given the one before the last and the last.

    Each distribution is drawn from a Dirichlet distribution with parameters 0.25.
    """
    size = len(SYMBOLS)
    # NumPy guarantees the stream of RandomState.
    return np.random.RandomState(0).dirichlet(np.full(size, 0.25), (size,) * ORDER)


@functools.cache
def stationary() -> np.ndarray:
    """Probabilities [16, 16] of pairs of adjacent symbols."""
    chain = transitions()
    pairs = np.full(chain.shape[:2], 1 / chain.shape[0] ** 2)
    for _ in range(10_000):
        following = np.einsum("ab,abc->bc", pairs, chain)
        if np.abs(following - pairs).max() < 1e-15:
            break
        pairs = following
    return pairs


def entropies() -> tuple[float, float, float]:
    """Entropy of a symbol in nats, given none, one, and two of the symbols before it.

    The last number is the entropy rate: no model has a lower expected loss per symbol.
    """
    pairs, chain = stationary(), transitions()
    last = pairs.sum(0)
    triples = pairs[..., None] * chain
    given_one = triples.sum(0) / last[:, None]
    return (
        float(-np.sum(last * np.log(last))),
        float(-np.sum(triples.sum(0) * _log(given_one))),
        float(-np.sum(triples * _log(chain))),
    )


def floor(length: int) -> float:
    """Lowest expected loss in nats per token of a causal model on windows of `length` tokens, the first not predicted.

    The second token has one symbol before it, all further ones have two.
    """
    _, one, two = entropies()
    return (one + (length - 2) * two) / (length - 1)


@functools.lru_cache(2)
def _block(number: int) -> list[str]:
    return documents(range(number * _BLOCK, (number + 1) * _BLOCK))


def documents(numbers: Sequence[int]) -> list[str]:
    """The texts of some documents, each of which begins in the stationary distribution."""
    size, cumulative = len(SYMBOLS), np.cumsum(transitions(), -1)
    drawn = np.stack([np.random.RandomState(number + 1).random_sample(LENGTH) for number in numbers])  # [N, L]
    first = np.minimum(np.searchsorted(np.cumsum(stationary()), drawn[:, 0]), size**2 - 1)
    out = np.empty(drawn.shape, np.uint8)
    out[:, 0], out[:, 1] = np.divmod(first, size)
    for i in range(2, LENGTH):
        below = cumulative[out[:, i - 2], out[:, i - 1]] < drawn[:, i, None]
        out[:, i] = np.minimum(below.sum(-1), size - 1)
    letters = np.frombuffer(SYMBOLS.encode(), np.uint8)
    return [bytes(row).decode() for row in letters[out]]


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(p, where=p > 0, out=np.zeros_like(p))
