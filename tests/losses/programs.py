"""Measures of traced programs: their largest array and the precision of their matrix products."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, of loop bodies and called functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation.params):
            yield from equations(inner)


def largest_array(jaxpr: Any) -> int:
    """Returns the number of elements of the largest array in a jaxpr, loop bodies and called functions included."""
    return max((variable.aval.size for equation in equations(jaxpr) for variable in equation.outvars), default=0)


def inexact_products(jaxpr: Any) -> list[str]:
    """The matrix products and convolutions whose precision is not HIGHEST."""
    products = ("dot_general", "conv_general_dilated", "ragged_dot_general")
    found = [e for e in equations(jaxpr) if e.primitive.name in products]
    return [str(e) for e in found if e.params["precision"] not in (EXACT, (EXACT, EXACT))]


EXACT = jax.lax.Precision.HIGHEST


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation (loop bodies, branches, called functions)."""
    for value in jax.tree.leaves(params):
        value = getattr(value, "jaxpr", value)  # a closed jaxpr holds an open one
        if hasattr(value, "eqns"):
            yield value
