"""Optimisers: frozen configurations that bind to a parameter tree and give optax transformations.

    bound = optimizer.bind(axes, shapes, lengths)                   # patterns, depths, layer axes: all settled here
    opt_state = bound.init(params)
    grads, norm = clip_by_global_norm(bound.trainable(grads), optimizer.clip_norm)
    lr = optimizer.peak_learning_rate(batch_size) * schedule.shape(step, total)
    updates, opt_state = bound.update(grads, opt_state, params, lr, step)
    params = optax.apply_updates(params, updates)

The caller computes `lr` from the state's own step, because a skipped step must advance the schedule. Every float
field may be a tracer (a stacked sweep replaces it inside the jitted step and binds again; binding costs no device
work).

Layers that are scanned are kept as one leaf [L, ...] whose logical axes begin with "layers" (and [E, ...] with
"experts"). Here such a leaf is L (x E) parameters: norms, factored moments and orthogonalisation are those of one
layer (`per_leaf`), so a scanned model trains exactly as an unrolled one.

Which leaves decay, have a trust ratio or are orthogonalised follows from the roles that modules declare, layer-wise
decay from their heights: see the tables in `ssljax.layers.roles`. Only the patterns of a config look at paths.

Paths are "a/b/c". Patterns are regular expressions searched in the path, so "bias$", "^encoder/", "last_layer".

Three ways to keep parameters still, all bitwise: `lr_multipliers: {pattern: 0}` (such leaves have no optimiser state
either), `freeze: {pattern: duration}` (no update before that step; gradients and moments are gathered meanwhile, so
that bias corrections fit when the update starts; Caron et al. 2021 keep DINO's last layer for its first epoch), and
no gradient at all, which is the objective's business.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from ssljax.base import durations
from ssljax.base.durations import Duration, RunLengths
from ssljax.base.registry import Registry
from ssljax.base.schema import setting
from ssljax.train.leaves import Leaf, Leaves, axes_of, describe, factors_by_height, factors_of, map_leaves, path_of

REGISTRY = Registry(
    "optimizer",
    {
        name.lower(): f"ssljax.train.optimizers:{name}"
        for name in ("AdamW", "SGD", "LARS", "LAMB", "Lion", "Adafactor", "Muon")
    },
)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The settings that all optimisers share."""

    learning_rate: float = setting(1e-3, gt=0, doc="peak learning rate, reached at the end of the warm-up")
    lr_per: int | None = setting(
        None,
        gt=0,
        doc="batch size that `learning_rate` is for: the rate grows linearly with the batch (Goyal et al. 2017, "
        "section 2.1); SimCLR's 0.3 x batch / 256 is learning_rate 0.3, lr_per 256; None: any batch",
    )
    weight_decay: float = setting(0.0, ge=0, doc="coefficient of the weight decay, times the learning rate")
    clip_norm: float | None = setting(
        None, gt=0, doc="largest global norm of the gradients (Pascanu et al. 2013); None: no clipping"
    )
    lr_multipliers: dict[str, float] = setting(
        {},
        doc="{pattern: factor} of the learning rate; the first pattern that matches a path counts, others have "
        "factor 1; factor 0 keeps parameters bitwise unchanged, without optimiser state",
    )
    wd_multipliers: dict[str, float] = setting(
        {},
        doc="{pattern: factor} of the weight decay; the first pattern that matches a path counts; without a match "
        "the factor is 1 for matrices, heads and embeddings, else 0 (biases, norms, scales, positions, class, mask "
        "and register tokens)",
    )
    layer_decay: float | None = setting(
        None,
        gt=0,
        le=1,
        doc="factor d of layer-wise learning rates; d^(n - i) for block i of n (from 0), d^(n + 1) for embeddings, 1 "
        "for the final norm and heads (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT); each stack of blocks "
        "counts its own; None: no decay over layers",
    )
    freeze: dict[str, Duration] = setting(
        {},
        doc="{pattern: duration}: no updates of matching parameters before that time (DINO's last layer: '1 epoch')",
    )

    def validate(self) -> None:
        for field in ("lr_multipliers", "wd_multipliers"):
            for pattern, factor in getattr(self, field).items():
                if factor < 0:
                    raise ValueError(f"{field}.{pattern}: got {factor!r}, must be >= 0")
        for field in ("lr_multipliers", "wd_multipliers", "freeze"):
            for pattern in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
        for pattern, duration in self.freeze.items():
            durations.parse(duration, f"freeze.{pattern}")

    @property
    def total_dependent(self) -> bool:
        """True if the updates at some step depend on the length of the run, which is then part of its identity."""
        return any(durations.depends_on_total(duration) for duration in self.freeze.values())

    def peak_learning_rate(self, batch_size: int) -> float | jax.Array:
        """The learning rate that the schedule multiplies, for this global batch."""
        return self.learning_rate if self.lr_per is None else self.learning_rate * (batch_size / self.lr_per)

    def bind(self, axes: Any, shapes: Any, lengths: RunLengths | None = None, path: str = "optimizer") -> "Bound":
        """The optimiser of one parameter tree.

        Args:
            axes: like the parameters, with a `ssljax.layers.roles.ParameterAxes` for each leaf; a tuple of logical
                axis names, `()` or None for a leaf without role and height.
            shapes: the parameters, or their `jax.ShapeDtypeStruct`s.
            lengths: what turns the durations of `freeze` into steps; not needed where they are integers.
            path: dotted path of the config group, for messages.

        Raises:
            UserError: a pattern that matches no parameter, `layer_decay` without layers, an unknown duration.
        """
        leaves = describe(axes, shapes)
        lr = factors_of(self.lr_multipliers, leaves, f"{path}.lr_multipliers")
        wd = factors_of(self.wd_multipliers, leaves, f"{path}.wd_multipliers")
        if lengths is None and any(isinstance(duration, str) for duration in self.freeze.values()):
            raise ValueError("bind needs lengths to turn the durations of freeze into steps")
        until = {
            pattern: duration if lengths is None else durations.steps(duration, lengths, f"{path}.freeze.{pattern}")
            for pattern, duration in self.freeze.items()
        }
        freeze = factors_of(until, leaves, f"{path}.freeze")
        by_height = factors_by_height(self.layer_decay, leaves, path) if self.layer_decay is not None else {}
        bound = {}
        for name, leaf in leaves.items():
            factor = float(lr.get(name, 1.0))
            if factor != 0 and name in by_height:
                factor = factor * by_height[name]
            bound[name] = dataclasses.replace(
                leaf, lr=factor, wd=float(wd.get(name, leaf.effects.decays)), frozen_until=int(freeze.get(name, 0))
            )
        rule = self.rule(bound)
        if any(leaf.frozen for leaf in bound.values()):
            rule = optax.masked(rule, lambda tree: map_leaves(bound, lambda leaf, _: not leaf.frozen, tree))
        return Bound(leaves=bound, rule=optax.with_extra_args_support(rule), axes=axes, shapes=shapes)

    def rule(self, leaves: Leaves) -> optax.GradientTransformation:
        """The update rule on the leaves that are trained; `update` is given `lr` and `step` as extra arguments."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bound:
    """An optimiser of one parameter tree: pure functions to be called inside the jitted step."""

    leaves: Leaves
    rule: optax.GradientTransformationExtraArgs
    axes: Any
    shapes: Any

    def init(self, params: Any) -> Any:
        """The optimiser's state at step 0. Moments are trees like the parameters, without the frozen leaves."""
        return self.rule.init(params)

    def update(
        self, grads: Any, opt_state: Any, params: Any, lr: jax.Array | float, step: jax.Array | int
    ) -> tuple[Any, Any]:
        """Returns what to add to the parameters, and the new state.

        Args:
            grads, params: trees like the bound one.
            lr: scalar, the learning rate of this step (peak times schedule).
            step: scalar integer, the run's step counter, which ends what `freeze` lists.

        Returns:
            (updates, opt_state); frozen leaves get -0.0, the one number that leaves every float bitwise alone.
        """
        updates, opt_state = self.rule.update(grads, opt_state, params, lr=lr, step=step)

        def unless_frozen(leaf: Leaf, update: jax.Array) -> jax.Array:
            if leaf.frozen:
                return jnp.full_like(update, -0.0)
            if leaf.frozen_until:
                return jnp.where(step < leaf.frozen_until, -0.0, update)
            return update

        return map_leaves(self.leaves, unless_frozen, updates), opt_state

    def trainable(self, grads: Any) -> Any:
        """Gradients with zeros for the leaves that are never updated, so that these don't count in the global norm."""
        return map_leaves(self.leaves, lambda leaf, g: jnp.zeros_like(g) if leaf.frozen else g, grads)

    def state_axes(self) -> Any:
        """A tree like the optimiser's state with a tuple of logical axis names for each leaf.

        An array with the shape of a parameter has its names, so it is sharded like it. An array per layer or expert
        keeps the names of these axes. The rest (counts, factored rows and columns, all small) is unnamed.
        """
        treedef: Any = jax.tree.structure(self.shapes)
        leaves = list(self.leaves.values())

        def like_params(node: Any) -> bool:
            try:
                treedef.flatten_up_to(node)
            except ValueError:
                return False
            return True

        def names(node: Any) -> Any:
            if not like_params(node):
                return (None,) * node.ndim
            parts = [
                jax.tree.map(lambda array, leaf=leaf: axes_of(array.shape, leaf), part)
                for part, leaf in zip(treedef.flatten_up_to(node), leaves)
            ]
            return jax.tree.unflatten(treedef, parts)

        return jax.tree.map(names, jax.eval_shape(self.rule.init, self.shapes), is_leaf=like_params)


def clip_by_global_norm(grads: Any, max_norm: jax.Array | float | None) -> tuple[Any, jax.Array]:
    """Gradients scaled so that their global norm is at most `max_norm`, and the norm before (float32 scalar).

    Pascanu et al. 2013, algorithm 1. None clips nothing. Where the norm is not finite the clipped gradients are
    meaningless: the caller checks the norm before it uses them.
    """
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    if max_norm is None:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), norm


def per_leaf(
    choose: Callable[[Leaf], optax.GradientTransformation | None], leaves: Leaves
) -> optax.GradientTransformation:
    """Applies a separate transformation to each leaf, mapped over the leaf's layer and expert axes.

    The state is a tree like the parameters whose leaves are replaced by the states of their transformations, with
    the leading axes of the leaf (a count becomes [L]).

    Args:
        choose: leaf -> its transformation, or None to leave the leaf unchanged.
        leaves: of the bound tree.
    """

    def mapped(leaf: Leaf, function: Callable) -> Callable:
        for _ in range(leaf.stacked):
            function = jax.vmap(function)
        return function

    def transformation(leaf: Leaf) -> optax.GradientTransformation:
        return choose(leaf) or optax.identity()

    def init(params: Any) -> Any:
        return map_leaves(leaves, lambda leaf, p: mapped(leaf, transformation(leaf).init)(p), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        flat, _ = jax.tree_util.tree_flatten_with_path(updates)
        treedef: Any = jax.tree.structure(updates)
        out = [
            mapped(leaf, transformation(leaf).update)(u, s, p)
            for leaf, u, s, p in zip(
                [leaves[path_of(keys)] for keys, _ in flat],
                [u for _, u in flat],
                treedef.flatten_up_to(state),
                treedef.flatten_up_to(params),
            )
        ]
        return treedef.unflatten([u for u, _ in out]), treedef.unflatten([s for _, s in out])

    return optax.GradientTransformation(init, update)


def _descend(leaves: Leaves) -> optax.GradientTransformationExtraArgs:
    """Multiplies by -lr and each leaf's own factor; the factor is 0 while the leaf is frozen."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any, step: Any, **_: Any) -> tuple[Any, Any]:
        def scale(leaf: Leaf, u: jax.Array) -> jax.Array:
            rate = jnp.where(step < leaf.frozen_until, 0.0, lr) if leaf.frozen_until else lr
            return (-rate * leaf.lr * u).astype(u.dtype)

        return map_leaves(leaves, scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _decay(weight_decay: Any, leaves: Leaves) -> optax.GradientTransformation:
    """Adds weight_decay x the leaf's factor x the parameter."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def add(leaf: Leaf, u: jax.Array, p: jax.Array) -> jax.Array:
            return u + weight_decay * leaf.wd * p if leaf.wd else u

        return map_leaves(leaves, add, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


_LEARNING_RATE = "peak learning rate, reached at the end of the warm-up"
_WEIGHT_DECAY = "coefficient of the weight decay, times the learning rate"
_BETA_1 = "decay of the first moment (beta_1)"
_BETA_2 = "decay of the second moment (beta_2)"
_EPSILON = "added to the root of the second moment (epsilon)"


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2).

    p <- p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p).
    """

    weight_decay: float = setting(0.05, ge=0, doc=_WEIGHT_DECAY)
    b1: float = setting(0.9, ge=0, lt=1, doc=_BETA_1)
    b2: float = setting(0.999, ge=0, lt=1, doc=_BETA_2)
    eps: float = setting(1e-8, gt=0, doc=_EPSILON)

    def rule(self, leaves):
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps), _decay(self.weight_decay, leaves), _descend(leaves)
        )


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum and L2 weight decay.

    v <- momentum v + g + weight_decay p;  p <- p - lr v. With `nesterov` the step is along
    g + weight_decay p + momentum v (Sutskever et al. 2013, as PyTorch writes it).
    """

    learning_rate: float = setting(0.1, gt=0, doc=_LEARNING_RATE)
    momentum: float = setting(0.9, ge=0, lt=1, doc="decay of the sum of gradients (mu)")
    nesterov: bool = setting(False, doc="the step is along gradient + momentum v, not v")

    def rule(self, leaves):
        return optax.chain(
            _decay(self.weight_decay, leaves), optax.trace(self.momentum, nesterov=self.nesterov), _descend(leaves)
        )


@dataclasses.dataclass(frozen=True)
class LARS(Optimizer):
    """Layer-wise adaptive rates (You, Gitman and Ginsburg 2017, algorithm 1), momentum after the learning rate.

    u = g + weight_decay p;  v <- momentum v + lr (trust |p| / |u|) u;  p <- p - v.
    The denominator is the norm of the sum as in SimCLR's and BYOL's code, where the paper adds the two norms. Biases,
    norms, scales and single tokens have no trust ratio and no decay (SimCLR), so their rate is `learning_rate` itself:
    large rates may want an `lr_multipliers` entry. The ratio is 1 where a norm is zero.
    """

    learning_rate: float = setting(0.3, gt=0, doc=_LEARNING_RATE)
    weight_decay: float = setting(1e-6, ge=0, doc=_WEIGHT_DECAY)
    momentum: float = setting(0.9, ge=0, lt=1, doc="decay of the sum of updates (m)")
    trust: float = setting(1e-3, gt=0, doc="trust coefficient (eta)")

    def rule(self, leaves):
        trust = optax.scale_by_trust_ratio(trust_coefficient=self.trust)
        return optax.chain(
            _decay(self.weight_decay, leaves),
            per_leaf(lambda leaf: trust if leaf.effects.trust else None, leaves),
            _descend(leaves),
            optax.trace(self.momentum),
        )


@dataclasses.dataclass(frozen=True)
class LAMB(Optimizer):
    """Layer-wise adaptive Adam (You et al. 2020, algorithm 2, with Adam's bias correction and phi the identity).

    u = Adam direction + weight_decay p;  p <- p - lr (|p| / |u|) u. Biases, norms, scales and single tokens have
    neither trust ratio nor decay. The ratio is 1 where a norm is zero.
    """

    weight_decay: float = setting(0.01, ge=0, doc=_WEIGHT_DECAY)
    b1: float = setting(0.9, ge=0, lt=1, doc=_BETA_1)
    b2: float = setting(0.999, ge=0, lt=1, doc=_BETA_2)
    eps: float = setting(1e-6, gt=0, doc=_EPSILON)

    def rule(self, leaves):
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            _decay(self.weight_decay, leaves),
            per_leaf(lambda leaf: optax.scale_by_trust_ratio() if leaf.effects.trust else None, leaves),
            _descend(leaves),
        )


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Sign of an interpolated momentum (Chen et al. 2023, algorithm 2).

    p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p);  m <- b2 m + (1 - b2) g. Rates are 3-10 times smaller
    than AdamW's, weight decays as much larger.
    """

    learning_rate: float = setting(1e-4, gt=0, doc=_LEARNING_RATE)
    weight_decay: float = setting(0.5, ge=0, doc=_WEIGHT_DECAY)
    b1: float = setting(0.9, ge=0, lt=1, doc="share of the momentum in the argument of the sign (beta_1)")
    b2: float = setting(0.99, ge=0, lt=1, doc="decay of the momentum (beta_2)")

    def rule(self, leaves):
        return optax.chain(optax.scale_by_lion(self.b1, self.b2), _decay(self.weight_decay, leaves), _descend(leaves))


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Factored second moments (Shazeer and Stern 2018, algorithm 4).

    The direction is g / sqrt(v), v kept as row and column means where a leaf has two axes of at least
    `min_factor_dim`; its root mean square is clipped to `clip_rms`; `relative` multiplies it by the root mean square
    of the parameter (at least 1e-3), so `learning_rate` is relative to the weights' size; `momentum`, off by default,
    averages it. Weight decay is decoupled, as in `adamw`.
    """

    learning_rate: float = setting(
        1e-2, gt=0, doc="peak learning rate; with `relative` it is relative to the size of the weights"
    )
    decay_rate: float = setting(
        0.8, gt=0, le=1, doc="exponent c: the decay of the second moment (beta_2) at update t is 1 - t^-c"
    )
    min_factor_dim: int = setting(
        128, ge=1, doc="the second moment is factored where two axes have at least this length"
    )
    clip_rms: float | None = setting(
        1.0, gt=0, doc="largest root mean square of the direction of a leaf (d); None: no clipping"
    )
    relative: bool = setting(True, doc="steps are relative to the root mean square of the parameter")
    momentum: float | None = setting(None, ge=0, lt=1, doc="decay of the averaged direction (beta_1); None: no average")

    def rule(self, leaves):
        factored = optax.scale_by_factored_rms(decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_factor_dim)
        parts = [per_leaf(lambda _: factored, leaves)]
        if self.clip_rms is not None:
            parts.append(per_leaf(lambda _: optax.clip_by_block_rms(self.clip_rms), leaves))
        if self.relative:
            parts.append(per_leaf(lambda _: optax.scale_by_param_block_rms(), leaves))
        if self.momentum is not None:
            parts.append(optax.ema(self.momentum, debias=False))
        return optax.chain(*parts, _decay(self.weight_decay, leaves), _descend(leaves))


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the hidden matrices, AdamW for the rest (Jordan et al. 2024).

    Momentum (bias-corrected, Nesterov), then `newton_schulz_steps` of the quintic iteration with coefficients
    (3.4445, -4.7750, 2.0315), from optax. Parameters with the role "matrix" take it; all others (embeddings, heads,
    positions, tokens, biases, norms, scales) take AdamW with b1, b2, eps and the same learning rate and decay. A kernel
    of more than two axes is a matrix of (all axes but the last, the last).

    The scale "rms" is that of Liu et al. 2025, Muon is Scalable for LLM Training, equation 4: learning rates and decays
    of AdamW carry over. "spectral" is Jordan's, with learning rates of about 0.02: the leaves of AdamW then need
    `lr_multipliers`.
    """

    weight_decay: float = setting(0.05, ge=0, doc=_WEIGHT_DECAY)
    momentum: float = setting(0.95, ge=0, lt=1, doc="decay of the running mean of gradients (mu)")
    nesterov: bool = setting(
        True, doc="momentum m + (1 - momentum) g is orthogonalised (m: the running mean of gradients g), not m"
    )
    newton_schulz_steps: int = setting(5, ge=1, doc="iterations of the orthogonalisation")
    scale: Literal["rms", "spectral"] = setting(
        "rms",
        doc="factor of an orthogonal update of a matrix [in, out]: 'rms' is 0.2 sqrt(max(in, out)), the size of an "
        "update of AdamW; 'spectral' is sqrt(max(1, out / in))",
    )
    b1: float = setting(0.9, ge=0, lt=1, doc=f"AdamW's leaves: {_BETA_1}")
    b2: float = setting(0.999, ge=0, lt=1, doc=f"AdamW's leaves: {_BETA_2}")
    eps: float = setting(1e-8, gt=0, doc=f"AdamW's leaves: {_EPSILON}")

    def rule(self, leaves):
        def matrix_axes(leaf: Leaf, array: jax.Array) -> optax.contrib.MuonDimensionNumbers:
            # The leading axes of layers and experts are named in neither tuple, so they are mapped over.
            return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.stacked, array.ndim - 1)), (array.ndim - 1,))

        orthogonal = optax.contrib.scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            nesterov=self.nesterov,
            weight_dimension_numbers=lambda tree: map_leaves(leaves, matrix_axes, tree),
        )
        scaled = optax.stateless(
            lambda updates, _: map_leaves(leaves, lambda leaf, u: u * self.update_scale(leaf), updates)
        )
        directions = {
            "matrix": optax.chain(orthogonal, scaled),
            "rest": optax.scale_by_adam(self.b1, self.b2, self.eps),
        }
        labels = {name: "matrix" if leaf.effects.orthogonal else "rest" for name, leaf in leaves.items()}
        return optax.chain(
            optax.partition(directions, lambda tree: map_leaves(leaves, lambda leaf, _: labels[leaf.path], tree)),
            _decay(self.weight_decay, leaves),
            _descend(leaves),
        )

    def update_scale(self, leaf: Leaf) -> float:
        """The factor of an orthogonal update of a leaf, from its shape."""
        *inputs, out = leaf.shape[leaf.stacked :]
        fan_in = int(np.prod(inputs))
        return 0.2 * max(fan_in, out) ** 0.5 if self.scale == "rms" else max(1.0, out / fan_in) ** 0.5
