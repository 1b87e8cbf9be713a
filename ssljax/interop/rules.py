"""How the tensors of another format become parameters and back: a table of rules, read in both directions.

A rule pairs a tensor's name there with one or more of our parameters. `{i}` in a name there counts the blocks, `{e}`
the experts; our parameters of them are stacked, [depth, experts, ...], so the rule then speaks of one. Rules for
parameters that a model does not have (biases, say) are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Op(NamedTuple):
    """What lies between a tensor and our parts of it; each undoes the other."""

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


class Rule(NamedTuple):
    """`theirs` holds our parameters `ours`, after `op`."""

    ours: tuple[str, ...]
    theirs: str
    op: Op
    skip: int = 0  # our first layers that have no such tensor
    step: int = 1  # layer i of ours is number i * step + shift there
    shift: int = 0

    def names(self, shape: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The tensors, and where each stands on the leading axes of our parameters: {i} layers, {e} experts."""
        axes = [axis for axis in ("{i}", "{e}") if axis in self.theirs]
        for index in np.ndindex(*shape[: len(axes)]):
            name = self.theirs
            for axis, i in zip(axes, index):
                name = name.replace(axis, str(i * self.step + self.shift if axis == "{i}" else i))
            if not index or index[0] >= self.skip:
                yield name, index


COPY = Op(lambda t: (t,), lambda parts: parts[0])
TRANSPOSE = Op(lambda t: (t.T,), lambda parts: parts[0].T)


def split(count: int, axis: int, transposed: bool = False) -> Op:
    """Equal parts along an axis of theirs; `transposed` where matrices are [out, in] there."""
    turn = (lambda t: t.T) if transposed else (lambda t: t)
    return Op(
        lambda t: tuple(turn(part) for part in np.split(t, count, axis)),
        lambda parts: np.concatenate([turn(part) for part in parts], axis),
    )


def by_head(heads: int) -> Op:
    """Rows [head, q k v, width of a head] of a matrix [out, in] or a bias (GPT-NeoX)."""

    def read(t: np.ndarray) -> Sequence[np.ndarray]:
        parts = t.reshape(heads, 3, -1, *t.shape[1:])
        return tuple(parts[:, j].reshape(-1, *t.shape[1:]).T for j in range(3))

    def write(parts: Sequence[np.ndarray]) -> np.ndarray:
        rows = [part.T.reshape(heads, 1, -1, *part.T.shape[1:]) for part in parts]
        return np.concatenate(rows, axis=1).reshape(-1, *parts[0].T.shape[1:])

    return Op(read, write)


def copy(ours: str, theirs: str) -> list[Rule]:
    return [Rule((ours,), theirs, COPY)]


def dense(ours: str, theirs: str, weight: Op = TRANSPOSE) -> list[Rule]:
    """A linear map; their matrix is [out, in]."""
    return [Rule((f"{ours}/kernel",), f"{theirs}.weight", weight), *copy(f"{ours}/bias", f"{theirs}.bias")]


def conv1d(ours: str, theirs: str) -> list[Rule]:
    """A linear map of GPT-2's; its matrix is [in, out]."""
    return dense(ours, theirs, COPY)


def norm(ours: str, theirs: str) -> list[Rule]:
    return [*copy(f"{ours}/scale", f"{theirs}.weight"), *copy(f"{ours}/bias", f"{theirs}.bias")]


def table(ours: str, theirs: str) -> list[Rule]:
    return copy(f"{ours}/embedding", f"{theirs}.weight")


def blocks(theirs: str, names: Mapping[str, str], ours: str = "stack/layers") -> list[Rule]:
    """Linear maps and norms of every block, {our name: their name}."""
    rules: list[Rule] = []
    for mine, name in names.items():
        rules += (norm if mine.endswith("_norm") else dense)(f"{ours}/{mine}", f"{theirs}.{name}")
    return rules


def under(ours: str, theirs: str, rules: Iterable[Rule], inner: str = "") -> list[Rule]:
    """The rules of a part: our parameters under `ours`, their names under `theirs` in the place of `inner`."""
    return [
        rule._replace(
            ours=tuple(f"{ours}/{name}" for name in rule.ours), theirs=theirs + rule.theirs.removeprefix(inner)
        )
        for rule in rules
    ]


def fused(ours: Sequence[str], theirs: str, weight: Op, bias: Op | None = None) -> list[Rule]:
    """Several linear maps in one tensor."""
    return [
        Rule(tuple(f"{name}/kernel" for name in ours), f"{theirs}.weight", weight),
        Rule(tuple(f"{name}/bias" for name in ours), f"{theirs}.bias", bias or weight),
    ]


def readout(theirs: str) -> list[Rule]:
    """A read-out of its own (a tied one has no parameter), and the bias of the logits."""
    return [Rule(("head_kernel",), f"{theirs}.weight", TRANSPOSE), *copy("head_bias", f"{theirs}.bias")]


def active(rules: Iterable[Rule], parameters: Iterable[str]) -> list[Rule]:
    """The rules whose parameters a model has."""
    known = set(parameters)
    return [rule for rule in rules if all(name in known for name in rule.ours)]
