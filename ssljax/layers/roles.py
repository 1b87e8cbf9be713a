"""Roles and heights of parameters, which optimisers read instead of names.

The role is the kind of a parameter. The height is the number of blocks from the parameter to the output of its stack,
including its own block. A module declares both when it creates a parameter (`ssljax.layers.dense.parameter`). Defaults
for parameters without a declaration (plain arrays, plain flax modules): role "matrix" with two or more axes, else
"bias"; height 0.

Roles decide on weight decay, on orthogonalisation by Muon, and on trust ratios (LARS, LAMB):

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
ELECTRA; Bao et al. 2022, BEiT):

- Block i (from 0) of a stack of n blocks has height n - i.
- Embeddings, and other parameters of the input of the stack, have height n + 1.
- The final norm, heads, and position terms that all blocks share have height 0.
- Each stack counts its own blocks: encoder and decoder, each tower, the decoder of a masked autoencoder.
- A table that two stacks read has the height that the deeper stack gives it.
- A block that is applied several times in a row (ALBERT) counts once.
- The maps between the two towers of LLaVA are a head of the image tower.

A module answers for its parameters and submodules by a method `height_of(part: str) -> int`, where `part` is the name
of the parameter or submodule. The function `height_of` walks up from a parameter to the nearest module with this
method.

The width ratio of a matrix or head is the number of its inputs as a multiple of that of a base model, for muP
(`ssljax.layers.width`); 1 where the inputs do not grow with the width of the model, and for all other parameters.

A scanned parameter [L, ...] has L heights. Inside a scanned unit, heights are relative to the first block of the unit;
`nn.scan(..., metadata_params={nn.PARTITION_NAME: "layers", HEIGHTS: heights})` adds the heights of the first blocks.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax

Role = Literal["matrix", "head", "embedding", "position", "token", "bias", "norm", "scale"]
Height = int | tuple[int, ...]

HEIGHTS = "heights"  # key of `metadata_params` of `nn.scan`


class Effects(NamedTuple):
    """The treatment of a role by optimisers."""

    decays: bool  # has weight decay
    orthogonal: bool  # Muon orthogonalises its update
    trust: bool  # LARS and LAMB scale its update by the norm of the parameter


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
    """The box in which `init` returns a parameter: its value, axis names, role, height and width ratio."""

    role: Role = flax.struct.field(default="matrix", pytree_node=False)
    height: Height = flax.struct.field(default=0, pytree_node=False)
    width_ratio: float = flax.struct.field(default=1.0, pytree_node=False)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """Adds the axis of a scan; a scan over blocks also turns the height into one height per block."""
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
    """The logical axis names of a parameter, with its role, height and width ratio as attributes.

    Sharding rules read the tuple of names; optimisers also read the attributes.
    """

    role: Role
    height: Height
    width_ratio: float

    def __new__(
        cls, names: tuple[str | None, ...], role: Role, height: Height = 0, width_ratio: float = 1.0
    ) -> "ParameterAxes":
        axes = super().__new__(cls, names)
        axes.role, axes.height, axes.width_ratio = role, height, width_ratio
        return axes


def declarations(boxed: Any) -> Any:
    """Replaces each box of a tree by its `ParameterAxes`; leaves without a declared role get a plain tuple of names."""

    def of_leaf(leaf: Any) -> tuple[str | None, ...]:
        if isinstance(leaf, Declared):
            return ParameterAxes(tuple(leaf.names), leaf.role, leaf.height, leaf.width_ratio)
        return tuple(leaf.names) if isinstance(leaf, nn.Partitioned) else ()

    return jax.tree.map(of_leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def default_role(rank: int) -> Role:
    """The role of a parameter without a declaration; `rank`: number of axes, without axes of layers and experts."""
    return "matrix" if rank >= 2 else "bias"


def height_of(module: nn.Module, part: str) -> int:
    """The height of the parameter or submodule `part` of a module, relative to its scanned unit.

    Asks the nearest enclosing module (the module itself included) that has a method `height_of`; 0 if there is none.
    """
    enclosing: Any = module
    while isinstance(enclosing, nn.Module):
        if hasattr(enclosing, "height_of"):
            return enclosing.height_of(part)
        enclosing, part = enclosing.parent, enclosing.name or ""
    return 0
