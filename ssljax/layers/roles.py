"""Declarations of parameters: what each one is (its role), and how many blocks lie above it (its height).

A module declares both where it makes the parameter (`ssljax.layers.dense.parameter`); optimisers read them and never
look at names. A parameter without a declaration (a plain array, a plain flax module) is a "matrix" with two or more
axes, else a "bias"; its height is 0.

Roles decide weight decay, Muon's set and trust ratios (LARS, LAMB):

    role        examples                                                      decay   Muon    trust ratio
    matrix      kernels of hidden maps, experts, routers, convolutions        yes     yes     yes
    head        last maps: to classes, vocabulary, prototypes, pixels         yes     no      yes
    embedding   tables of tokens and token types; the projection of patches   yes     no      yes
    position    tables of positions, distances, relative and grid biases      no      no      yes
    token       class, mask and register tokens; learned queries              no      no      no
    bias        biases of maps, of logits and of XLNet's queries              no      no      no
    norm        scales and biases of norms                                    no      no      no
    scale       LayerScale, temperatures                                      no      no      no

Heights decide layer-wise decay: the learning rate of a parameter is multiplied by decay ** height (Clark et al. 2020,
ELECTRA; Bao et al. 2022, BEiT). In a stack of n blocks, block i (from 0) has height n - i. Embeddings and all else
that makes the input of the stack have height n + 1. The final norm, heads, and biases that all blocks share have
height 0. Each stack counts its own blocks: the encoder and the decoder of a pair, each tower, the decoder of a masked
autoencoder; a table that two stacks read belongs to the deeper one. A block that is applied several times in a row
(ALBERT) counts once. The maps between two towers (LLaVA) are a head of the first.

`height_of(module, name)` asks the nearest enclosing module with a method `height_of(part: str) -> int`, `part` being
its own parameter or submodule that holds the parameter. Inside a scanned unit heights are relative to the first block
of the unit; `nn.scan(..., metadata_params={nn.PARTITION_NAME: "layers", HEIGHTS: heights})` gives the heights of these
first blocks, and a scanned parameter [L, ...] has L heights.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax

Role = Literal["matrix", "head", "embedding", "position", "token", "bias", "norm", "scale"]
Height = int | tuple[int, ...]

HEIGHTS = "heights"  # key of `metadata_params`


class Effects(NamedTuple):
    """The defaults of optimisers for a role."""

    decays: bool  # weight decay
    orthogonal: bool  # Muon orthogonalises the update
    trust: bool  # LARS and LAMB scale the update by the norm of the parameter


EFFECTS: dict[Role, Effects] = {
    "matrix": Effects(True, True, True),
    "head": Effects(True, False, True),
    "embedding": Effects(True, False, True),
    "position": Effects(False, False, True),
    "token": Effects(False, False, False),
    "bias": Effects(False, False, False),
    "norm": Effects(False, False, False),
    "scale": Effects(False, False, False),
}


class Declared(nn.LogicallyPartitioned):
    """A parameter with its logical axis names, role and height, as `init` returns it."""

    role: Role = flax.struct.field(default="matrix", pytree_node=False)
    height: Height = flax.struct.field(default=0, pytree_node=False)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """Adds the axis of a scan, and the heights of its blocks if it is one over blocks."""
        box: Any = super().add_axis(index, params)
        if HEIGHTS not in params:
            return box
        assert isinstance(self.height, int), "scans over blocks are not nested"
        return box.replace(height=tuple(first + self.height for first in params[HEIGHTS]))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """The inverse of `add_axis`."""
        box: Any = super().remove_axis(index, params)
        if HEIGHTS not in params:
            return box
        assert isinstance(self.height, tuple), "the axis of blocks has heights"
        return box.replace(height=self.height[0] - params[HEIGHTS][0])


class ParameterAxes(tuple[str | None, ...]):
    """The logical axis names of a parameter, which also carry its role and height.

    It is a tuple of names, as sharding rules read it; optimisers read `role` and `height` too.
    """

    role: Role
    height: Height

    def __new__(cls, names: tuple[str | None, ...], role: Role, height: Height = 0) -> "ParameterAxes":
        axes = super().__new__(cls, names)
        axes.role, axes.height = role, height
        return axes


def declarations(boxed: Any) -> Any:
    """The tree of `ParameterAxes` of a tree with boxes; a plain tuple of names (or `()`) where nothing is declared."""

    def of_leaf(leaf: Any) -> tuple[str | None, ...]:
        if isinstance(leaf, Declared):
            return ParameterAxes(tuple(leaf.names), leaf.role, leaf.height)
        return tuple(leaf.names) if isinstance(leaf, nn.Partitioned) else ()

    return jax.tree.map(of_leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def default_role(rank: int) -> Role:
    """The role of a parameter that declares none; `rank` leaves the axes of layers and experts out."""
    return "matrix" if rank >= 2 else "bias"


def height_of(module: nn.Module, part: str) -> int:
    """The number of blocks above the parameter or submodule `part` of a module (within its scanned unit).

    It is what the nearest enclosing module with a method `height_of` returns, and 0 without one.
    """
    inner: Any = module
    while isinstance(inner, nn.Module):
        if hasattr(inner, "height_of"):
            return inner.height_of(part)
        inner, part = inner.parent, inner.name or ""
    return 0
