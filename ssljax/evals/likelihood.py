"""Perplexity, pseudo-perplexity, and their n-gram controls."""

import dataclasses
import math
from collections.abc import Collection
from typing import ClassVar, Literal

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.evals.base import Evaluation, Metrics, Reader

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

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    prefix: ClassVar[str] = ""

    def headline(self) -> tuple[str, ...]:
        return (f"{self.prefix}bits_per_byte", f"{self.prefix}perplexity")

    def check(self, reader: Reader) -> Collection[str]:
        reader.scores(self.test_split)
        if self.ngrams:
            for split in (self.fit_split, self.test_split):
                if "tokens" not in reader.example(split):
                    raise UserError(f"{reader.path}.ngrams: got True, but split {split!r} has no tokens")
        return (*self._metrics(0.0, reader), "scored_tokens")

    def run(self, reader: Reader) -> Metrics:
        log_prob, count = reader.scores(self.test_split)
        nats = -float(np.sum(log_prob, dtype=np.float64) / np.sum(count, dtype=np.float64))
        return self._metrics(nats / math.log(2), reader) | {"scored_tokens": float(np.sum(count, dtype=np.float64))}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        if not self.ngrams:
            return {}
        # Fitted on the whole split even with `max_examples`: fewer tokens would make the control too easy to beat.
        fit, test = _tokens(reader.arrays(self.fit_split, whole=True)), _tokens(reader.arrays(self.test_split))
        return {
            "unigram": self._metrics(unigram_bits(*fit, *test), reader),
            "bigram": self._metrics(bigram_bits(*fit, *test), reader),
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


def unigram_bits(
    fit: np.ndarray, fit_mask: np.ndarray, test: np.ndarray, test_mask: np.ndarray, *, held_out: float = 0.1
) -> float:
    """Cross-entropy of test tokens, in bits per token, under p(a) = (n_a + alpha) / (n + alpha V).

    V is one more than the largest token of both splits. `alpha` is selected on the last `held_out` share of the fitting
    tokens: it minimises their cross-entropy under counts of the rest. The final counts n are over all fitting tokens.

    Args:
        fit, test: tokens [N, T].
        fit_mask, test_mask: bool [N, T], False at padding.
        held_out: share of the fitting tokens on which alpha is selected.
    """
    fit_tokens, test_tokens = fit[fit_mask], test[test_mask]
    size = int(max(fit_tokens.max(), test_tokens.max())) + 1

    def bits(train: np.ndarray, other: np.ndarray, alpha: float) -> float:
        return float(-np.mean(np.log2(_unigram(train, size, alpha)[other])))

    cut = round(len(fit_tokens) * (1 - held_out))
    alpha = min(ALPHAS, key=lambda a: bits(fit_tokens[:cut], fit_tokens[cut:], a))
    return bits(fit_tokens, test_tokens, alpha)


def bigram_bits(
    fit: np.ndarray, fit_mask: np.ndarray, test: np.ndarray, test_mask: np.ndarray, *, held_out: float = 0.1
) -> float:
    """Cross-entropy of test tokens, in bits per token, each given the previous token of its row.

    p(b | a) = (n_ab + alpha p(b)) / (n_a + alpha) with p(b) the unigram model (MacKay & Peto 1995). For a large
    vocabulary this is a stronger control than uniform smoothing. `alpha` is selected as in `unigram_bits`, on whole
    rows. Arguments as in `unigram_bits`.
    """
    size = int(max(fit[fit_mask].max(), test[test_mask].max())) + 1

    def bits(rows: slice, other: tuple[np.ndarray, np.ndarray], alphas: tuple[float, ...]) -> np.ndarray:
        train = _pairs(fit[rows], fit_mask[rows])
        keys, counts = np.unique(train[0] * size + train[1], return_counts=True)
        before = np.bincount(train[0], minlength=size)
        unigram = _unigram(fit[rows][fit_mask[rows]], size, 0.5)
        pairs = other[0] * size + other[1]
        nearest = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
        n_ab = np.where(keys[nearest] == pairs, counts[nearest], 0)
        return np.array([-np.mean(np.log2((n_ab + a * unigram[other[1]]) / (before[other[0]] + a))) for a in alphas])

    cut = min(max(1, round(len(fit) * (1 - held_out))), max(1, len(fit) - 1))
    selection = _pairs(fit[cut:], fit_mask[cut:])
    alpha = ALPHAS[int(bits(slice(cut), selection, ALPHAS).argmin())] if len(selection[0]) else 1.0
    return float(bits(slice(None), _pairs(test, test_mask), (alpha,))[0])


def _unigram(tokens: np.ndarray, size: int, alpha: float) -> np.ndarray:
    counts = np.bincount(tokens, minlength=size)
    return (counts + alpha) / (len(tokens) + alpha * size)


def _pairs(tokens_NxT: np.ndarray, mask_NxT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (previous, next) tokens of all neighbours within rows, without padding."""
    both = mask_NxT[:, :-1] & mask_NxT[:, 1:]
    return tokens_NxT[:, :-1][both].astype(np.int64), tokens_NxT[:, 1:][both].astype(np.int64)


def _tokens(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [N, T] of a split and a mask that is False at padding (segment 0)."""
    tokens = np.asarray(arrays["tokens"])
    return tokens, arrays["segment_ids"] > 0 if "segment_ids" in arrays else np.ones(tokens.shape, bool)
