"""The table of a parameter tree before any step: paths, axes, roles, heights and factors of its leaves.

Roles and heights are those that modules declare (`ssljax.layers.roles`). Layers that are scanned are one leaf
[L, ...] whose logical axes begin with "layers" (and [E, ...] with "experts"); it stands for L (x E) parameters. Paths
are "a/b/c".
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ssljax.base.errors import UserError
from ssljax.layers.roles import EFFECTS, Effects, Height, ParameterAxes, Role, default_role

STACKING = ("layers", "experts")  # leading logical axes along which a leaf is many parameters


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the parameter tree before any step."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: int  # number of leading axes in STACKING
    role: Role
    height: Height = 0  # number of blocks above; one for each layer of a scanned leaf
    lr: float | np.ndarray = 1.0  # multiplier of the learning rate; [L, 1, ...] under layer-wise decay
    wd: float = 1.0  # multiplier of the weight decay
    frozen_until: int = 0  # no update at steps below this

    @property
    def frozen(self) -> bool:
        """True if it is never updated."""
        return isinstance(self.lr, float) and self.lr == 0

    @property
    def effects(self) -> Effects:
        """The defaults of its role."""
        return EFFECTS[self.role]


Leaves = dict[str, Leaf]  # by path


def path_of(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_leaves(leaves: Leaves, function: Callable, *trees: Any) -> Any:
    """`function(leaf, *arrays)` over trees like the parameters (leaves masked away are skipped)."""
    return jax.tree_util.tree_map_with_path(lambda keys, *arrays: function(leaves[path_of(keys)], *arrays), *trees)


def describe(axes: Any, shapes: Any) -> Leaves:
    """The table of leaves of a parameter tree, in the tree's order.

    Args:
        axes: like the parameters, with a `ParameterAxes` for each leaf; a plain tuple of names or None where nothing
            is declared.
        shapes: the parameters, or their shapes.

    Raises:
        ValueError: names that do not fit a shape, or an undeclared parameter among those of scanned layers.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    treedef: Any = jax.tree.structure(shapes)
    leaves = {}
    for (keys, array), declared in zip(flat, treedef.flatten_up_to(axes)):
        path, names = path_of(keys), tuple(declared or ())
        if names and len(names) != array.ndim:
            raise ValueError(f"{path}: logical axes {names} do not fit the shape {array.shape}")
        stacked = next((i for i, name in enumerate(names) if name not in STACKING), len(names))
        if isinstance(declared, ParameterAxes):
            role, height = declared.role, declared.height
        else:
            role, height = default_role(array.ndim - stacked), 0
        leaves[path] = Leaf(path, tuple(array.shape), names, stacked, role, height)
    _check_scanned(leaves)
    return leaves


def _check_scanned(leaves: Leaves) -> None:
    """Raises ValueError for a leaf of a scanned stack without axis names: it would pass for one parameter.

    It stands among scanned leaves only, and its first axis has their length.
    """
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves.values():
        parts = leaf.path.split("/")
        for i in range(1, len(parts)):
            groups.setdefault("/".join(parts[:i]), []).append(leaf)
    for group in groups.values():
        named = [leaf for leaf in group if leaf.axes]
        if not named or not all(leaf.stacked for leaf in named):
            continue
        for leaf in group:
            if not leaf.axes and leaf.shape[:1] == named[0].shape[:1]:
                raise ValueError(
                    f"{leaf.path}: a parameter of scanned layers needs logical axis names (shape {leaf.shape})"
                )


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


def factors_by_height(decay: Any, leaves: Leaves, path: str) -> dict[str, Any]:
    """{path: decay ** height} of the leaves with blocks above them; [L, 1, ...] for a scanned leaf."""
    factors = {}
    for name, leaf in leaves.items():
        if isinstance(leaf.height, tuple):
            axis = leaf.axes.index("layers")
            heights = np.asarray(leaf.height, np.float32)
            factors[name] = decay ** heights.reshape([-1 if i == axis else 1 for i in range(len(leaf.shape))])
        elif leaf.height:
            factors[name] = decay**leaf.height
    if not factors:
        raise UserError(f"{path}.layer_decay: got {decay!r}, but the model has no layers; remove the key")
    return factors


def axes_of(shape: tuple[int, ...], leaf: Leaf) -> tuple[str | None, ...]:
    """The axis names of an array of the optimiser's state that belongs to a leaf."""
    if shape == leaf.shape:
        return leaf.axes
    if leaf.stacked and shape[: leaf.stacked] == leaf.shape[: leaf.stacked]:
        return leaf.axes[: leaf.stacked] + (None,) * (len(shape) - leaf.stacked)
    return (None,) * len(shape)
