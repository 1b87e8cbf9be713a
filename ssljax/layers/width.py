"""muP: initial values, learning rates and logits that scale with the width of a model.

In the maximal update parametrisation, activations and their changes in a step keep their size when the width grows, so
the best learning rate of a narrow model is that of a wide one (Yang et al. 2022, "Tensor Programs V", table 8, in the
form for Adam). A config gives the width at which muP equals the standard parametrisation, `mup_base_width`; the width
ratio m of a model is its width divided by it. Everything else must be in proportion: `mlp_ratio` rather than `mlp_dim`,
and the width of a head (`heads` grows) or the number of heads (`mup_base_heads`).

    parameters                                  initial deviation    learning rate    forward
    matrices from width to width                x m^-1/2             x 1/m
    matrices from width to a fixed size         x 1/m                x 1/m
    read-out to the vocabulary                                                        logits x 1/m
    embeddings, positions, tokens               fixed                fixed
    biases, norms, scales                       fixed                fixed
    logits of attention                                                               x (h0/h)^1/2

The last row is for heads of width h, h0 at the base width: 1/h in place of 1/h^1/2. Initialisers that depend on the
number of inputs (Xavier, He) have the factor m^-1/2 themselves. Decoupled weight decay is not divided by m with the
learning rate, so that the time scale of the decay stays the same (Wang and Aitchison 2024). The rules hold for
optimisers whose updates do not depend on the size of gradients: AdamW and Lion.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from ssljax.layers.roles import Role

WIDE = ("embed", "mlp", "heads", "kv")  # logical axes that grow with the width of a model


def ratio_of(module: nn.Module) -> float:
    """Returns the width ratio of the model of which a module is a part; 1 without muP."""
    enclosing: Any = module
    while isinstance(enclosing, nn.Module):
        ratio = getattr(getattr(enclosing, "config", None), "width_ratio", None)
        if ratio is not None:
            return ratio
        enclosing = enclosing.parent
    return 1.0


def output_ratio(model: Any) -> float:
    """Returns the width ratio of the features of a model, for heads on top of it; 1 for a model without muP."""
    return getattr(model, "width_ratio", 1.0)


def input_ratio(module: nn.Module, names: tuple[str | None, ...], role: Role) -> float:
    """Returns the width ratio of a parameter, from the logical names of its axes."""
    is_matrix = role in ("matrix", "head") and len(names) > 1
    return ratio_of(module) if is_matrix and names[-2] in WIDE else 1.0


def scaled(init: Any, factor: float) -> Any:
    """Returns an initialiser whose values are multiplied by a factor."""
    if factor == 1:
        return init

    @functools.wraps(init)
    def initial(*arguments: Any, **options: Any) -> jax.Array:
        return factor * init(*arguments, **options)

    return initial


def to_fixed_size(init: Any, names: tuple[str | None, ...], role: Role, ratio: float) -> Any:
    """Returns the initialiser of a matrix with outputs of a fixed size, from one that scales as m^-1/2."""
    return scaled(init, ratio**-0.5) if role == "head" or names[-1] not in WIDE else init
