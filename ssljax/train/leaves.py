"""What is known of the leaves of a parameter tree before any step: their paths, axes, kinds and factors.

Layers that are scanned are one leaf [L, ...] whose logical axes begin with "layers" (and [E, ...] with "experts"); it
stands for L (x E) parameters. Paths are "a/b/c".
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from ssljax.base.errors import UserError

STACKING = ("layers", "experts")  # leading logical axes along which a leaf is many parameters

# What the names of parameters and of their logical axes tell, where the rank does not.
_EMBEDDING = re.compile(r"embed|position|token|register|patch")
_HEAD = re.compile(r"(^|[/_])(head|classifier|logits|prototypes|last_layer)(/|$)")
_BLOCK = re.compile(r"^(?P<stack>(?:[^/]+/)*?)(?:blocks?|layers?)(?:[_/](?P<index>\d+))?(?=/|$)")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is known of one leaf of the parameter tree before any step."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: int  # number of leading axes in STACKING
    kind: Literal["matrix", "vector", "embedding", "head"]
    lr: float | np.ndarray = 1.0  # multiplier of the learning rate; [L, 1, ...] under layer-wise decay
    wd: float = 1.0  # multiplier of the weight decay
    frozen_until: int = 0  # no update at steps below this

    @property
    def frozen(self) -> bool:
        """Never updated."""
        return isinstance(self.lr, float) and self.lr == 0

    @property
    def is_vector(self) -> bool:
        """Biases, norms, scales: at most one axis besides the stacking ones, whatever the name."""
        return len(self.shape) - self.stacked <= 1


Leaves = dict[str, Leaf]  # by path


def path_of(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_leaves(leaves: Leaves, function: Callable, *trees: Any) -> Any:
    """`function(leaf, *arrays)` over trees like the parameters (leaves masked away are skipped)."""
    return jax.tree_util.tree_map_with_path(lambda keys, *arrays: function(leaves[path_of(keys)], *arrays), *trees)


def describe(axes: Any, shapes: Any) -> Leaves:
    """The table of leaves of a parameter tree, in the tree's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    treedef: Any = jax.tree.structure(shapes)
    leaves = {}
    for (keys, array), names in zip(flat, treedef.flatten_up_to(axes)):
        path, names = path_of(keys), tuple(names or ())
        if names and len(names) != array.ndim:
            raise ValueError(f"{path}: logical axes {names} do not fit the shape {array.shape}")
        stacked = next((i for i, name in enumerate(names) if name not in STACKING), len(names))
        leaves[path] = Leaf(
            path, tuple(array.shape), names, stacked, kind_of(path.lower(), names, array.ndim - stacked)
        )
    # A leaf in a scanned stack that forgot its names would pass for one parameter of another rank.
    scanned = {_stack(path) for path, leaf in leaves.items() if leaf.stacked} - {None}
    for path, leaf in leaves.items():
        if not leaf.axes and _stack(path) in scanned:
            raise ValueError(f"{path}: a parameter of scanned layers needs logical axis names (shape {leaf.shape})")
    return leaves


def _stack(path: str) -> str | None:
    """What the path of a parameter of a stack of blocks begins with; None outside of stacks."""
    match = _BLOCK.match(path)
    return match["stack"] if match else None


def kind_of(path: str, axes: tuple[str | None, ...], rank: int) -> Literal["matrix", "vector", "embedding", "head"]:
    if rank <= 1:
        return "vector"
    if _HEAD.search(path) or "classes" in axes:
        return "head"
    if "positions" in axes or "patch" in axes:
        return "embedding"
    # A kernel that names its axes is what they say, whatever its module is called (`decoder/embed/kernel` of MAE).
    if _EMBEDDING.search(path) and not (axes and path.endswith("/kernel")):
        return "embedding"
    return "head" if "vocab" in axes else "matrix"


def factors_of(table: dict[str, Any], leaves: Leaves, key: str) -> dict[str, Any]:
    """{path: value of the first pattern that matches}; a pattern that matches no path at all is a mistake."""
    found: dict[str, Any] = {}
    for pattern, value in table.items():
        paths = [path for path in leaves if re.search(pattern, path)]
        if not paths:
            some = list(leaves)[:: max(1, len(leaves) // 4)][:4]
            raise UserError(
                f"{key}: {pattern!r} matches no parameter (there are {len(leaves)}: {', '.join(some)}, ...)"
            )
        for path in paths:
            found.setdefault(path, value)
    return found


def factors_by_depth(decay: Any, leaves: Leaves, path: str) -> dict[str, Any]:
    """The factor of layer-wise decay of each leaf below the last depth; [L, 1, ...] for a scanned leaf."""
    stacks: dict[str, int] = {}  # what the paths of a stack begin with -> number of blocks
    places: dict[str, tuple[str, Any]] = {}  # path -> (its stack, index or indices of its block)
    for name, leaf in leaves.items():
        match = _BLOCK.match(name)
        stack = _stack(name) or ""
        if "layers" in leaf.axes[: leaf.stacked]:
            axis = leaf.axes.index("layers")
            depth = leaf.shape[axis]
            index = np.arange(depth, dtype=np.float32)
            places[name] = stack, index.reshape([-1 if i == axis else 1 for i in range(len(leaf.shape))])
        elif match and match["index"]:
            depth = int(match["index"]) + 1
            places[name] = stack, depth - 1
        else:
            continue
        stacks[stack] = max(stacks.get(stack, 0), depth)
    if not stacks:
        raise UserError(f"{path}.layer_decay: got {decay!r}, but the model has no layers; remove the key")

    factors = {name: decay ** (stacks[stack] - index) for name, (stack, index) in places.items()}
    for name in leaves:
        embeds = _EMBEDDING.search(name.lower()) and not _HEAD.search(name.lower())
        if name not in places and embeds:
            _, depth = max((_shared(stack, name), depth) for stack, depth in stacks.items())
            factors[name] = decay ** (depth + 1)
    return factors


def _shared(a: str, b: str) -> int:
    """Number of leading path components that two paths share."""
    pairs = zip(a.split("/"), b.split("/"))
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count("/"), b.count("/")) + 1)


def axes_of(shape: tuple[int, ...], leaf: Leaf) -> tuple[str | None, ...]:
    if shape == leaf.shape:
        return leaf.axes
    if leaf.stacked and shape[: leaf.stacked] == leaf.shape[: leaf.stacked]:
        return leaf.axes[: leaf.stacked] + (None,) * (len(shape) - leaf.stacked)
    return (None,) * len(shape)
