"""Exact ends of rows of a language model, by a loop over tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssljax.base.errors import UserError
from ssljax.objectives.autoregressive.causal_lm import at_the_end


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**16))
def test_ends_of_rows_by_a_loop(rows, length, n, seed):
    rng = np.random.default_rng(seed)
    correct, weights = (rng.random((rows, length)) < p for p in (0.8, 0.9))
    if n > length:
        with pytest.raises(UserError, match=f"objective.last: got {n}, must be at most {length}"):
            at_the_end(jnp.float32(correct), jnp.float32(weights), n)
        return
    right = counted = 0
    for row in range(rows):
        end = [i for i in range(length) if weights[row, i]][-n:]
        counted += len(end) == n
        right += len(end) == n and all(correct[row, i] for i in end)
    assert tuple(map(int, at_the_end(jnp.float32(correct), jnp.float32(weights), n))) == (right, counted)
