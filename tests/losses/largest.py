"""The largest array of a traced program: a measure of its memory."""

from collections.abc import Iterator
from typing import Any

import jax


def largest_array(jaxpr: Any) -> int:
    """Returns the number of elements of the largest array in a jaxpr, loop bodies and called functions included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        sizes += map(largest_array, _inner(equation.params))
    return max(sizes)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation (loop bodies, branches, called functions)."""
    for value in jax.tree.leaves(params):
        value = getattr(value, "jaxpr", value)  # a closed jaxpr holds an open one
        if hasattr(value, "eqns"):
            yield value
