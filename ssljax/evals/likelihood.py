"""Perplexity, pseudo-perplexity, and their n-gram controls."""

import dataclasses
import math
from collections.abc import Collection
from typing import ClassVar, NamedTuple

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.evals.base import Direction, Evaluation, Metrics, Reader

PSEUDO_WARNING = (
    "pseudo-perplexity scores each token given all other tokens; it is no likelihood and not comparable with perplexity"
)
ALPHAS = tuple(10.0 ** (e / 2) for e in range(-8, 9))  # smoothing, 1e-4 to 1e4


@dataclasses.dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity exp(-mean log p) per token, and bits per byte, of an objective whose scores are likelihoods.

    The controls are a unigram and a bigram model of the same tokens, fitted on the fitting split.
    """

    ngrams: bool = setting(True, doc="fits the unigram and bigram controls")

    better: ClassVar[Direction] = "lower"
    prefix: ClassVar[str] = ""

    def headline(self) -> tuple[str, ...]:
        return (f"{self.prefix}bits_per_byte", f"{self.prefix}perplexity")

    def separate_splits(self) -> tuple[str, ...]:
        return ("fit_split", "test_split") if self.ngrams else ()

    def check(self, reader: Reader) -> Collection[str]:
        reader.scores(self.test_split)
        if self.ngrams:
            for split in (self.fit_split, self.test_split):
                if "tokens" not in reader.example(split):
                    raise UserError(f"{reader.path}.ngrams: got True, but split {split!r} has no tokens")
            _scored(reader, self.test_split)
        return (*self._metrics(0.0, reader), "scored_tokens")

    def run(self, reader: Reader) -> Metrics:
        log_prob, count = reader.scores(self.test_split)
        nats = -float(np.sum(log_prob, dtype=np.float64) / np.sum(count, dtype=np.float64))
        return self._metrics(nats / math.log(2), reader) | {"scored_tokens": float(np.sum(count, dtype=np.float64))}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        if not self.ngrams:
            return {}
        # Fitted on the whole split even with `max_examples`: fewer tokens would make the control too easy to beat.
        fit, test = _scored(reader, self.fit_split, whole=True), _scored(reader, self.test_split)
        return {
            "unigram": self._metrics(unigram_bits(fit, test), reader),
            "bigram": self._metrics(bigram_bits(fit, test), reader),
        }

    def _metrics(self, bits_per_token: float, reader: Reader) -> Metrics:
        metrics = {"perplexity": float(np.exp2(bits_per_token)), "bits_per_token": bits_per_token}
        bytes_per_token = reader.bytes_per_token(self.test_split)
        if bytes_per_token:
            metrics["bits_per_byte"] = bits_per_token / bytes_per_token
        return {f"{self.prefix}{name}": value for name, value in metrics.items()}


@dataclasses.dataclass(frozen=True)
class PseudoPerplexity(Perplexity):
    """Perplexity of pseudo-log-likelihoods (Salazar et al. 2020): each token is scored given all other tokens.

    It can lie below the perplexity of every true model. All its metrics are therefore called `pseudo_...`, and
    PSEUDO_WARNING is printed with them. The n-gram controls are true likelihoods, conditioned on the past only.
    """

    prefix: ClassVar[str] = "pseudo_"
    warning: ClassVar[str] = PSEUDO_WARNING


class Scored(NamedTuple):
    """Rows of tokens [N, T] and the tokens that count.

    Attributes:
        tokens: token ids.
        counted: bool, the tokens that are predicted.
        follows: bool, the tokens that have a predecessor in their segment.
    """

    tokens: np.ndarray
    counted: np.ndarray
    follows: np.ndarray

    def rows(self, rows: slice) -> "Scored":
        """Returns a part of the rows."""
        return Scored(*(array[rows] for array in self))


def unigram_bits(fit: Scored, test: Scored, *, held_out: float = 0.1) -> float:
    """Cross-entropy of the counted test tokens, in bits per token, under p(a) = (n_a + alpha) / (n + alpha V).

    V is one more than the largest token of both splits. `alpha` is selected on the last `held_out` share of the fitting
    tokens: it minimises their cross-entropy under counts of the rest. The final counts n are over all fitting tokens.
    """
    fit_tokens, test_tokens = fit.tokens[fit.counted], test.tokens[test.counted]
    size = int(max(fit_tokens.max(), test_tokens.max())) + 1

    def bits(train: np.ndarray, other: np.ndarray, alpha: float) -> float:
        return float(-np.mean(np.log2(_unigram(train, size, alpha)[other])))

    cut = round(len(fit_tokens) * (1 - held_out))
    alpha = min(ALPHAS, key=lambda a: bits(fit_tokens[:cut], fit_tokens[cut:], a))
    return bits(fit_tokens, test_tokens, alpha)


def bigram_bits(fit: Scored, test: Scored, *, held_out: float = 0.1) -> float:
    """Cross-entropy of the counted test tokens, in bits per token, each given the previous token of its segment.

    p(b | a) = (n_ab + alpha p(b)) / (n_a + alpha) with p(b) the unigram model (MacKay & Peto 1995). For a large
    vocabulary this is a stronger control than uniform smoothing. A counted token without a predecessor has probability
    p(b). `alpha` is selected as in `unigram_bits`, on whole rows.
    """
    size = int(max(fit.tokens.max(), test.tokens.max())) + 1

    def bits(train: Scored, other: Scored, alphas: tuple[float, ...]) -> np.ndarray:
        before, after = _pairs(train)
        keys, counts = np.unique(before * size + after, return_counts=True)
        n_a = np.bincount(before, minlength=size)
        unigram = _unigram(train.tokens[train.counted], size, 0.5)
        a, b = _pairs(other)
        nearest = np.minimum(np.searchsorted(keys, a * size + b), max(len(keys) - 1, 0))
        n_ab = np.where(keys[nearest] == a * size + b, counts[nearest], 0) if len(keys) else np.zeros(len(a))
        first = np.sum(np.log2(unigram[other.tokens[other.counted & ~other.follows]]))
        return np.array([-(np.sum(np.log2((n_ab + x * unigram[b]) / (n_a[a] + x))) + first) for x in alphas]) / max(
            np.sum(other.counted), 1
        )

    rows = len(fit.tokens)
    cut = min(max(1, round(rows * (1 - held_out))), max(1, rows - 1))
    train, selection = fit.rows(slice(cut)), fit.rows(slice(cut, None))
    usable = selection.counted.any() and train.counted.any()
    alpha = ALPHAS[int(bits(train, selection, ALPHAS).argmin())] if usable else 1.0
    return float(bits(fit, test, (alpha,))[0])


def _unigram(tokens: np.ndarray, size: int, alpha: float) -> np.ndarray:
    counts = np.bincount(tokens, minlength=size)
    return (counts + alpha) / (len(tokens) + alpha * size)


def _pairs(rows: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Returns (previous, counted) tokens of all counted tokens that have a predecessor in their segment."""
    pairs = (rows.counted & rows.follows)[:, 1:]
    return rows.tokens[:, :-1][pairs].astype(np.int64), rows.tokens[:, 1:][pairs].astype(np.int64)


def _scored(reader: Reader, split: str, whole: bool = False) -> Scored:
    """Returns the tokens of a split and the tokens that scores count.

    Raises:
        UserError: no token counts.
    """
    arrays, counted = reader.arrays(split, whole), reader.scored(split, whole)
    if not counted.any():
        raise UserError(f"{reader.path}: no token of split {split!r} is predicted (each text has one token or none)")
    tokens = np.asarray(arrays["tokens"])
    segments = arrays.get("segment_ids", np.ones(tokens.shape, np.int32))
    follows = np.zeros(tokens.shape, bool)
    follows[:, 1:] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return Scored(tokens, counted, follows)
