"""A table of the leaves of a parameter tree: path, axes, role, height and optimiser factors of each leaf.

Modules declare roles and heights (`ssljax.layers.roles`). A parameter of L scanned layers is one leaf [L, ...] whose
logical axes begin with "layers"; a parameter of E experts is [E, ...] or [L, E, ...] with the axis "experts". For
optimisers such a leaf is L (x E) separate parameters. Paths have the form "a/b/c".
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ssljax.base.errors import UserError
from ssljax.layers.roles import EFFECTS, Effects, Height, ParameterAxes, Role, default_role

STACKING = ("layers", "experts")  # leading logical axes along which a leaf holds separate parameters


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The properties of one leaf of a parameter tree."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: int  # number of leading axes in STACKING
    role: Role
    height: Height = 0  # a tuple with one height per layer for a scanned leaf
    lr: float | np.ndarray = 1.0  # multiplier of the learning rate; [L, 1, ...] for a scanned leaf with layer_decay
    wd: float = 1.0  # multiplier of the weight decay
    width_ratio: float = 1.0  # of the inputs of a matrix, for muP (`ssljax.layers.width`)
    frozen_until: int = 0  # first step at which the leaf is updated

    @property
    def frozen(self) -> bool:
        """True if the leaf is never updated."""
        return isinstance(self.lr, float) and self.lr == 0

    @property
    def effects(self) -> Effects:
        """The treatment of the leaf's role by optimisers."""
        return EFFECTS[self.role]


Leaves = dict[str, Leaf]  # by path


def path_of(keys: tuple) -> str:
    """The path "a/b/c" of a leaf from its jax keys."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_leaves(leaves: Leaves, function: Callable, *trees: Any) -> Any:
    """Maps function(leaf, *arrays) over trees with the structure of the parameters; trees may lack masked leaves."""
    return jax.tree_util.tree_map_with_path(lambda keys, *arrays: function(leaves[path_of(keys)], *arrays), *trees)


def describe(axes: Any, shapes: Any) -> Leaves:
    """The table of leaves of a parameter tree, in the tree's order.

    Args:
        axes: a tree like the parameters, with a `ParameterAxes` for each leaf; a plain tuple of names, `()` or None for
            a leaf without a declared role.
        shapes: the parameters, or their shapes.

    Raises:
        ValueError: axis names do not fit a shape, or a parameter of scanned layers has no axis names.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    treedef: Any = jax.tree.structure(shapes)
    leaves = {}
    for (keys, array), declared in zip(flat, treedef.flatten_up_to(axes)):
        path, names = path_of(keys), tuple(declared or ())
        if names and len(names) != array.ndim:
            raise ValueError(f"{path}: logical axes {names} do not fit the shape {array.shape}")
        stacked = next((i for i, name in enumerate(names) if name not in STACKING), len(names))
        if not isinstance(declared, ParameterAxes):
            declared = ParameterAxes(names, default_role(array.ndim - stacked))
        of_module = {name: getattr(declared, name) for name in ("role", "height", "width_ratio")}
        leaves[path] = Leaf(path, tuple(array.shape), names, stacked, **of_module)
    _check_scanned(leaves)
    return leaves


def _check_scanned(leaves: Leaves) -> None:
    """Finds parameters of scanned layers without axis names, which would be taken for one parameter instead of L.

    Such a leaf is recognised by its group, in which all named leaves are scanned, and by its first axis of their
    length.

    Raises:
        ValueError: there is such a leaf.
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


def factors_of(table: Sequence[tuple[str, Any]], leaves: Leaves, key: str) -> dict[str, Any]:
    """Returns {path: value of the first pattern that matches the path}.

    Args:
        table: pairs (regular expression, value).
        leaves: the table of leaves.
        key: config key of `table`, for messages.

    Raises:
        UserError: a pattern matches no path.
    """
    found: dict[str, Any] = {}
    for pattern, value in table:
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
    """Returns {path: decay ** height} for leaves of height > 0; an array [L, 1, ...] for a scanned leaf.

    Raises:
        UserError: no leaf has a height > 0.
    """
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
    """The axis names of an array of the optimiser's state, from the leaf to which it belongs."""
    if shape == leaf.shape:
        return leaf.axes
    if leaf.stacked and shape[: leaf.stacked] == leaf.shape[: leaf.stacked]:
        return leaf.axes[: leaf.stacked] + (None,) * (len(shape) - leaf.stacked)
    return (None,) * len(shape)
