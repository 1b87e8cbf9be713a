"""Masked spans of SpanBERT: budgets, lengths and places, over many rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError

ROWS, LENGTH, BUDGET = 4000, 120, 18


@functools.cache
def spans(p=0.2, longest=10):
    keys = views.example_keys(jax.random.key(0), jnp.arange(ROWS))
    candidate = jnp.ones((ROWS, LENGTH), bool).at[:, 50].set(False)
    choose = jax.jit(functools.partial(views.choose_spans, most=BUDGET, p=p, longest=longest))
    return np.asarray(choose(keys, candidate, jnp.full(ROWS, BUDGET)))


def test_every_row_has_its_number_of_tokens_in_runs():
    found = spans()
    assert ((found > 0).sum(1) == BUDGET).all() and not found[:, 50].any()
    for row in found[:200]:
        for number in range(1, row.max() + 1):
            at = np.flatnonzero(row == number)
            assert len(at) >= 1 and (np.diff(at) == 1).all()


def test_the_first_lengths_are_geometric():
    """The first span of a row is cut by no budget: P(length = k) is proportional to p (1 - p)^(k - 1), up to 10."""
    lengths = (spans() == 1).sum(1)
    share = np.bincount(lengths, minlength=11)[1:] / ROWS
    # A span of k tokens is drawn again if it covers token 50, of which 120 - k + 1 places k do.
    weight = np.array([0.8 ** (k - 1) for k in range(1, 11)])
    assert weight @ range(1, 11) / weight.sum() == pytest.approx(3.8, abs=0.01)
    weight *= [1 - k / (LENGTH - k + 1) for k in range(1, 11)]
    expected = weight / weight.sum()
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected.max() / ROWS))


def test_first_tokens_are_uniform_away_from_the_borders():
    first = np.array([np.flatnonzero(row == 1)[0] for row in spans()])
    counts = np.bincount(first, minlength=LENGTH)
    inner = counts[60:105]
    assert abs(inner - inner.mean()).max() < 5 * np.sqrt(inner.mean())


def test_a_span_has_one_fate():
    keys = views.example_keys(jax.random.key(1), jnp.arange(500))
    tokens = jnp.broadcast_to(jnp.arange(5, 5 + LENGTH), (500, LENGTH))
    corrupt = functools.partial(views.mlm_corrupt, vocab_size=200, mask_id=4, special_ids=(0, 1, 2, 3), spans=(0.2, 10))
    made = jax.jit(corrupt)(keys, tokens, jnp.ones((500, LENGTH), bool))
    inputs, chosen = np.asarray(made.tokens), np.asarray(made.chosen)
    assert (chosen.sum(1) == BUDGET).all() and (inputs[~chosen] == np.asarray(tokens)[~chosen]).all()
    masked = (inputs == 4)[chosen].mean()
    kept = (inputs == np.asarray(tokens))[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1, abs=0.03)
    # Neighbours share their fate more often than by chance, which is 0.64 + 0.01 + 0.01.
    both = chosen[:, 1:] & chosen[:, :-1]
    alike = ((inputs == 4)[:, 1:] == (inputs == 4)[:, :-1])[both].mean()
    assert alike > 0.85


def test_no_span_crosses_a_border_of_segments():
    keys = views.example_keys(jax.random.key(2), jnp.arange(400))
    segments = jnp.broadcast_to(1 + jnp.arange(LENGTH) // 7, (400, LENGTH))
    choose = functools.partial(views.choose_spans, most=BUDGET, p=0.2, longest=10)
    candidate, count = jnp.ones((400, LENGTH), bool), jnp.full(400, BUDGET)
    found = np.asarray(jax.jit(choose)(keys, candidate, count, segment_ids=segments))
    assert ((found > 0).sum(1) == BUDGET).all()
    for row in found:
        for number in range(1, row.max() + 1):
            assert len(set(np.flatnonzero(row == number) // 7)) == 1


def test_the_objective_masks_spans():
    objective = dataclasses.replace(tiny.make("mlm").unwrapped, spans=(0.2, 4), rate=0.4)
    batch = tiny.batch()
    made = objective.views(views.example_keys(jax.random.key(0), tiny.BATCH), batch, jnp.int32(0))
    assert made["counted"].any() and not np.array_equal(made["tokens"], batch["tokens"])
    with pytest.raises(UserError, match=r"spans: got \(1\.0, 10\), must be \(p, longest\) with 0 < p < 1"):
        objectives.create({**tiny.config("mlm"), "objective": {"name": "mlm", "spans": (1.0, 10)}}, tiny.SPEC)
