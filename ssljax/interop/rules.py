"""Tensors of `transformers` as parameters of ssljax and back: a table of rules, read in both directions.

A rule pairs the name of a tensor with one or more paths of parameters. In the name, `{i}` is the number of a block and
`{e}` the number of an expert. Parameters are stacked, [blocks, experts, ...]; an op sees one block or expert.
Rules of parameters that a model does not have (biases, say) are ignored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Op(NamedTuple):
    """Two inverse functions: `read` from a tensor to the arrays of its parameters, `write` back."""

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


class Rule(NamedTuple):
    """The tensor that holds the parameters at `paths`, after `op`."""

    paths: tuple[str, ...]
    tensor: str
    op: Op
    skip: int = 0  # the first `skip` layers lack this tensor
    step: int = 1  # layer i of the parameters is layer i * step + shift of the tensors
    shift: int = 0

    def names(self, shape: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the name of each tensor, and its index on the leading axes of the parameters (layers, experts)."""
        axes = [axis for axis in ("{i}", "{e}") if axis in self.tensor]
        for index in np.ndindex(*shape[: len(axes)]):
            name = self.tensor
            for axis, i in zip(axes, index):
                name = name.replace(axis, str(i * self.step + self.shift if axis == "{i}" else i))
            if not index or index[0] >= self.skip:
                yield name, index


COPY = Op(lambda t: (t,), lambda parts: parts[0])
TRANSPOSE = Op(lambda t: (t.T,), lambda parts: parts[0].T)
LEADING = Op(lambda t: (t[0],), lambda parts: parts[0][None])  # a tensor [1, ...]


def split(at: int | Sequence[int], axis: int, transposed: bool = False) -> Op:
    """Splits a tensor along an axis into a number of equal parts, or at the given indices.

    transposed: the parts are matrices [out, in].
    """
    turn = (lambda t: t.T) if transposed else (lambda t: t)
    return Op(
        lambda t: tuple(turn(part) for part in np.split(t, at, axis)),
        lambda parts: np.concatenate([turn(part) for part in parts], axis),
    )


def by_head(heads: int) -> Op:
    """Splits a matrix [out, in] or a bias whose rows are [heads, q k v, width of a head] (GPT-NeoX)."""

    def read(t: np.ndarray) -> Sequence[np.ndarray]:
        parts = t.reshape(heads, 3, -1, *t.shape[1:])
        return tuple(parts[:, j].reshape(-1, *t.shape[1:]).T for j in range(3))

    def write(parts: Sequence[np.ndarray]) -> np.ndarray:
        rows = [part.T.reshape(heads, 1, -1, *part.T.shape[1:]) for part in parts]
        return np.concatenate(rows, axis=1).reshape(-1, *parts[0].T.shape[1:])

    return Op(read, write)


def copy(path: str, tensor: str, op: Op = COPY) -> list[Rule]:
    """A tensor that holds one parameter."""
    return [Rule((path,), tensor, op)]


def dense(path: str, tensor: str, weight: Op = TRANSPOSE) -> list[Rule]:
    """A linear map, whose matrix is [out, in] in the tensor."""
    return fused((path,), tensor, weight, COPY)


def fused(paths: Sequence[str], tensor: str, weight: Op, bias: Op | None = None) -> list[Rule]:
    """Several linear maps in one tensor."""
    return [
        Rule(tuple(f"{path}/kernel" for path in paths), f"{tensor}.weight", weight),
        Rule(tuple(f"{path}/bias" for path in paths), f"{tensor}.bias", bias or weight),
    ]


def norm(path: str, tensor: str) -> list[Rule]:
    """A norm, with or without a bias."""
    return [*copy(f"{path}/scale", f"{tensor}.weight"), *copy(f"{path}/bias", f"{tensor}.bias")]


def table(path: str, tensor: str) -> list[Rule]:
    """A table of embeddings."""
    return copy(f"{path}/embedding", f"{tensor}.weight")


def named(names: Mapping[str, str], path: str = "", tensor: str = "") -> list[Rule]:
    """Rules for {path: tensor}: norms and tables if the last word of a path is `norm` or `embed`, else linear maps."""
    kinds = {"norm": norm, "embed": table}
    rules = [kinds.get(end.rpartition("_")[2].rpartition("/")[2], dense)(end, name) for end, name in names.items()]
    return under(path, tensor, [rule for each in rules for rule in each])


def blocks(tensor: str, names: Mapping[str, str], path: str = "stack/layers") -> list[Rule]:
    """The norms and linear maps of every block."""
    return named(names, f"{path}/", f"{tensor}.")


def under(path: str, tensor: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part, with prefixes for the paths and the tensors."""
    return [rule._replace(paths=tuple(path + p for p in rule.paths), tensor=tensor + rule.tensor) for rule in rules]


def readout(tensor: str, bias: str = "") -> list[Rule]:
    """The matrix of an untied read-out (a tied one has no parameter), and the bias of the logits."""
    return [*copy("head_kernel", f"{tensor}.weight", TRANSPOSE), *copy("head_bias", bias or f"{tensor}.bias")]


def active(rules: Iterable[Rule], parameters: Iterable[str]) -> list[Rule]:
    """Returns the rules whose parameters a model has."""
    present = set(parameters)
    return [rule for rule in rules if all(path in present for path in rule.paths)]
