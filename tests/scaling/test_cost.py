"""Costs of a config equal those of the program that trains it, and no array is made."""

import jax
import pytest
import tiny_runs

from ssljax import runs
from ssljax.config import build
from ssljax.runs import accounting
from ssljax.scaling.cost import Costs

CONFIG = {**tiny_runs.LM, "data": {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}}


def test_costs_are_those_of_the_program():
    config = build({**CONFIG, "steps": "4096 tokens", "ema": 0.9})
    cost = Costs()(config)
    program = runs.assemble(config).program
    sizes = [leaf.size for leaf in jax.tree.leaves(program.shapes.params)]
    assert cost.parameters == sum(sizes)
    accounted = accounting.cost(runs.assemble(config))
    assert cost.non_embedding == accounted.non_embedding < cost.parameters
    assert (cost.flops, cost.examples, cost.tokens) == (accounted.flops, accounted.examples, accounted.tokens)
    assert cost.steps == 4096 // (8 * 16) and cost.tokens == 4096 and cost.examples == 256
    shapes = program.shapes
    state = [leaf.size for leaf in jax.tree.leaves((shapes.params, shapes.opt_state, shapes.ema))]
    assert cost.state_bytes == pytest.approx(4 * sum(state), rel=0.01)


def test_flops_are_those_of_the_matrix_products():
    """A decoder of width 16 with one block on 16 tokens, by hand: multiply-adds of a forward pass, times two."""
    tokens, width, vocabulary = 16, 16, Costs().spec(build(CONFIG)).vocab_size
    block = tokens * (4 * width**2 + 2 * 4 * width**2) + 2 * width * tokens * (tokens + 1) // 2
    forward = 2 * (block + (tokens - 1) * width * vocabulary)  # the first token is not predicted
    cost = Costs()(build(CONFIG))
    assert cost.flops_per_step == 3 * 8 * forward
    assert cost.flops == 2 * cost.flops_per_step
