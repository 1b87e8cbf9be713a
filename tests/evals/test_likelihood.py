"""Perplexity and the n-gram controls against values computed by hand."""

import math

import numpy as np
import pytest

from ssljax.evals.likelihood import ALPHAS, Perplexity, PseudoPerplexity, Scored, bigram_bits, unigram_bits


def rows(tokens, first=True):
    """Returns rows [N, T] of one segment; `first`: their first token counts."""
    tokens = np.atleast_2d(np.asarray(tokens, np.int32))
    follows = np.broadcast_to(np.arange(tokens.shape[1]) > 0, tokens.shape)
    return Scored(tokens, np.ones(tokens.shape, bool) if first else follows, follows)


def test_unigram_by_hand():
    fit, test = rows([0, 0, 0, 1] * 5), rows([0, 1, 1, 1])
    # The first 18 of 20 tokens are 14 zeros and 4 ones; the last two are [0, 1].
    chosen = min(ALPHAS, key=lambda a: -math.log2((14 + a) / (18 + 2 * a)) - math.log2((4 + a) / (18 + 2 * a)))
    zero, one = (15 + chosen) / (20 + 2 * chosen), (5 + chosen) / (20 + 2 * chosen)
    assert unigram_bits(fit, test) == pytest.approx(-(math.log2(zero) + 3 * math.log2(one)) / 4)


def test_bigram_by_hand():
    lines = [[0, 1, 0, 1, 0, 1]] * 9 + [[0, 1, 0, 1, 1, 1]]
    fit, test = rows(lines, first=False), rows([[0, 1, 1, 0]], first=False)
    counted = lambda lines: np.array(lines)[:, 1:]  # noqa: E731
    unigram = lambda lines: [(np.sum(counted(lines) == v) + 0.5) / (counted(lines).size + 1) for v in (0, 1)]  # noqa: E731

    def p(lines, a, b, alpha):
        n_ab = sum(row[i : i + 2] == [a, b] for row in lines for i in range(5))
        n_a = sum(row[i] == a for row in lines for i in range(5))
        return (n_ab + alpha * unigram(lines)[b]) / (n_a + alpha)

    held_out = [(0, 1), (1, 0), (0, 1), (1, 1), (1, 1)]
    alpha = min(ALPHAS, key=lambda x: -sum(math.log2(p(lines[:9], a, b, x)) for a, b in held_out))
    expected = -sum(math.log2(p(lines, a, b, alpha)) for a, b in [(0, 1), (1, 1), (1, 0)]) / 3
    assert bigram_bits(fit, test) == pytest.approx(expected)


def test_n_grams_reach_the_entropy_of_a_markov_chain():
    """The bigram reaches the entropy rate, the unigram the entropy of the stationary distribution."""
    rng = np.random.default_rng(0)
    stay = 0.9
    flips = rng.random((400, 200)) > stay
    tokens = (np.cumsum(flips, axis=1) + rng.integers(2, size=(400, 1))) % 2
    rate = -(stay * math.log2(stay) + (1 - stay) * math.log2(1 - stay))
    fit, test = rows(tokens[:300]), rows(tokens[300:])
    assert bigram_bits(fit, test) == pytest.approx(rate, abs=0.02)
    assert unigram_bits(fit, test) == pytest.approx(1.0, abs=0.01)


def test_padding_is_not_counted_and_new_tokens_have_finite_cost():
    fit = rows([[1, 2, 1, 2, 0, 0], [1, 2, 1, 2, 1, 2]])
    counted = np.array(fit.counted)
    counted[0, 4:] = False
    tokens = np.array(fit.tokens)
    tokens[0, 4:] = 2
    fit, other = fit._replace(counted=counted), fit._replace(counted=counted, tokens=tokens)
    for bits in (unigram_bits, bigram_bits):
        assert bits(fit, fit) == bits(other, other)
        assert math.isfinite(bits(fit, rows([[7, 7, 3]])))


def test_a_token_without_a_predecessor_has_its_unigram_probability():
    fit, test = rows([[0, 1], [0, 1], [1, 0]], first=True), rows([[1], [0]], first=True)
    p = [(3 + 0.5) / (6 + 1)] * 2  # half of the counted tokens are 0
    assert bigram_bits(fit, test) == pytest.approx(-np.mean(np.log2(p)))


class Reader:
    path = "evals.perplexity"
    tokens = np.random.default_rng(0).integers(4, size=(30, 11))

    def scores(self, split):
        return np.full(30, -10 * math.log(4), np.float32), np.full(30, 10.0)

    def arrays(self, split, whole=False):
        return {"tokens": self.tokens}

    def scored(self, split, whole=False):
        return np.broadcast_to(np.arange(11) > 0, self.tokens.shape)

    def bytes_per_token(self, split):
        return 4.0


def test_perplexity_and_bits_per_byte():
    result = Perplexity().run(Reader())
    assert result["perplexity"] == pytest.approx(4) and result["bits_per_token"] == pytest.approx(2)
    assert result["bits_per_byte"] == pytest.approx(0.5) and result["scored_tokens"] == 300
    controls = Perplexity().trivial(Reader())
    assert controls["unigram"]["bits_per_byte"] == pytest.approx(0.5, abs=0.01)
    assert set(controls) == {"unigram", "bigram"} and not Perplexity(ngrams=False).trivial(Reader())


def test_metrics_of_pseudo_perplexity_are_called_pseudo():
    result = PseudoPerplexity().run(Reader())
    assert result["pseudo_perplexity"] == pytest.approx(4) and "perplexity" not in result
    assert "not comparable" in PseudoPerplexity.warning and not Perplexity.warning
