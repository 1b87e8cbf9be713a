"""Exact spans of a language model, by a loop over spans."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssljax.base.errors import UserError
from ssljax.objectives.causal_lm import in_spans


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**16))
def test_spans_by_a_loop(rows, length, n, seed):
    rng = np.random.default_rng(seed)
    correct, weights = (rng.random((rows, length)) < p for p in (0.7, 0.9))
    if n > length:
        with pytest.raises(UserError, match=f"objective.spans: got {n}, must be at most {length}"):
            in_spans(jnp.float32(correct), jnp.float32(weights), n)
        return
    right = counted = 0
    for row in range(rows):
        for first in range(0, length - n + 1, n):
            span = slice(first, first + n)
            counted += weights[row, span].all()
            right += (weights & correct)[row, span].all()
    assert tuple(map(int, in_spans(jnp.float32(correct), jnp.float32(weights), n))) == (right, counted)
