"""Descriptions of masks as pytrees."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from ssljax.layers.masks import Blocks, Causal, Full, Mask, Sliding, materialize

STRUCTURE = {"window": 3, "causal": True, "size": 2}  # fields that are no arrays


def example(cls):
    """A mask of this class whose arrays are ones."""
    values = {"parts": (Causal(), Full()), **STRUCTURE}
    return cls(**{f.name: values.get(f.name, jnp.ones((2, 2), int)) for f in dataclasses.fields(cls)})


KINDS = sorted(Mask.__subclasses__(), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_a_description_is_a_pytree(cls):
    mask = example(cls)
    leaves, structure = jax.tree.flatten(mask)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    values = [(getattr(again, f.name), getattr(mask, f.name)) for f in dataclasses.fields(cls)]
    assert type(again) is cls and all(a is b or a == b for a, b in values)
    assert jax.tree.structure(again) == structure and hash(jax.tree.structure(again)) == hash(structure)


@pytest.mark.parametrize("one, other", itertools.combinations(KINDS, 2), ids=lambda cls: cls.__name__)
def test_kinds_have_different_structures(one, other):
    """`jit` caches programs by structure, so equal structures would share a program."""
    if len(jax.tree.leaves(example(one))) == len(jax.tree.leaves(example(other))):
        same_leaves = jax.tree.map(lambda x: 0, (example(one), example(other)))
        assert jax.tree.structure(same_leaves[0]) != jax.tree.structure(same_leaves[1])


def test_numbers_of_a_description_are_structure():
    structures = [jax.tree.structure(Sliding(2)), jax.tree.structure(Sliding(3)), jax.tree.structure(Sliding(2, False))]
    structures += [jax.tree.structure(Blocks(size, jnp.ones((1, 1), bool))) for size in (2, 4)]
    assert len(set(structures)) == 5


def test_a_function_is_traced_for_each_description():
    """The failure happened once in a hundred runs, when hashes agreed in seven bits."""
    for _ in range(300):
        allowed = jax.jit(lambda mask: materialize(mask, 2, 2))
        programs = {str(allowed.trace(mask).jaxpr) for mask in (Full(), Causal())}
        assert len(programs) == 2
