"""Optimisers: frozen configurations that become optax transformations when they are bound to a parameter tree.

    bound = optimizer.bind(axes, shapes, lengths)                   # resolves patterns, heights and layer axes
    opt_state = bound.init(params)
    grads, norm = clip_by_global_norm(bound.trainable(grads), optimizer.clip_norm)
    lr = optimizer.peak_learning_rate(batch_size) * schedule.shape(step, total)
    updates, opt_state = bound.update(grads, opt_state, params, lr, step)
    params = optax.apply_updates(params, updates)

The caller passes `lr` for the step of the run, since skipped steps must advance the schedule too. Float fields may be
tracers: a stacked sweep replaces them inside the jitted step and binds again, which costs no work on the device.

A parameter of L scanned layers is one leaf [L, ...], a parameter of E experts is [E, ...] or [L, E, ...]. Optimisers
treat such a leaf as L (x E) separate parameters: norms, factored moments and orthogonalisation are computed for each
(`per_leaf`), so a scanned model trains exactly as an unrolled one.

The roles that modules declare decide which leaves have weight decay or a trust ratio or are orthogonalised; their
heights decide on layer-wise decay (`ssljax.layers.roles`). Paths matter only for the patterns in a config.

Paths have the form "a/b/c". Patterns are regular expressions that are searched in the path: "bias$", "^encoder/",
"last_layer".

Two settings keep parameters bitwise unchanged. Leaves with `lr_multipliers: [(pattern, 0)]` are never updated and have
no optimiser state. Leaves with `freeze: [(pattern, duration)]` are not updated before that time, but their moments are,
so that bias corrections are right when updates begin (Caron et al. 2021 freeze DINO's last layer during the first
epoch).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from ssljax.base import durations
from ssljax.base.durations import Duration, RunLengths
from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting
from ssljax.train.leaves import Leaf, Leaves, axes_of, describe, factors_by_height, factors_of, map_leaves, path_of

REGISTRY = Registry(
    "optimizer",
    {
        name.lower(): f"ssljax.train.optimizers:{name}"
        for name in ("AdamW", "SGD", "LARS", "LAMB", "Lion", "Adafactor", "Muon")
    },
    has=("bind", "peak_learning_rate"),
)


# Meanings of keys that several optimisers declare with different defaults.
_LEARNING_RATE = "peak learning rate, reached at the end of the warm-up"
_WEIGHT_DECAY = "coefficient of weight decay, multiplied by the learning rate"
_BETA_1 = "decay of the first moment (beta_1)"
_BETA_2 = "decay of the second moment (beta_2)"
_EPSILON = "added to the root of the second moment (epsilon)"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The settings that all optimisers share."""

    mup: ClassVar[bool] = False  # True: the learning rates of muP (`ssljax.layers.width`) are those of this rule

    learning_rate: float = setting(1e-3, gt=0, doc=_LEARNING_RATE)
    lr_per: int | None = setting(
        None,
        gt=0,
        doc="reference batch size: the peak learning rate is learning_rate x batch size / lr_per (Goyal et al. 2017, "
        "section 2.1); SimCLR: learning_rate 0.3, lr_per 256; None: no dependence on the batch size",
    )
    weight_decay: float = setting(0.0, ge=0, doc=_WEIGHT_DECAY)
    clip_norm: float | None = setting(
        None, gt=0, doc="largest global norm of the gradients (Pascanu et al. 2013); None: no clipping"
    )
    lr_multipliers: tuple[tuple[str, float], ...] = setting(
        (),
        doc="factors of the learning rate, [(pattern, factor), ...]; the first pattern that matches a path counts; "
        "without a match the factor is 1; factor 0 keeps parameters bitwise unchanged and without optimiser state",
    )
    wd_multipliers: tuple[tuple[str, float], ...] = setting(
        (),
        doc="factors of weight decay, [(pattern, factor), ...]; the first pattern that matches a path counts; without "
        "a match the factor is 1 for matrices, heads and embeddings, and 0 for biases, norms, scales, positions and "
        "class, mask and register tokens",
    )
    layer_decay: float | None = setting(
        None,
        gt=0,
        le=1,
        doc="layer-wise decay d of learning rates; factor d^(n - i) for block i (from 0) of n blocks, d^(n + 1) for "
        "embeddings, 1 for the final norm and heads (Clark et al. 2020, ELECTRA, and Bao et al. 2022, BEiT); each "
        "stack counts its own blocks; None: no layer-wise decay",
    )
    moment_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        doc="type in which the first moment or momentum is stored, rounded to nearest; second moments are float32",
    )
    freeze: tuple[tuple[str, Duration], ...] = setting(
        (),
        doc="times before which parameters are not updated, [(pattern, duration), ...] (DINO's last layer: '1 epoch')",
    )

    def validate(self) -> None:
        for field in ("lr_multipliers", "wd_multipliers"):
            for pattern, factor in getattr(self, field):
                if factor < 0:
                    raise ValueError(f"{field}.{pattern}: got {factor!r}, must be >= 0")
        for field in ("lr_multipliers", "wd_multipliers", "freeze"):
            for pattern, _ in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
        for pattern, duration in self.freeze:
            durations.parse(duration, f"freeze.{pattern}")

    @property
    def total_dependent(self) -> bool:
        """True if updates depend on the length of the run, which is then part of the identity of the run."""
        return any(durations.depends_on_total(duration) for _, duration in self.freeze)

    def peak_learning_rate(self, batch_size: int) -> float | jax.Array:
        """The peak learning rate for a global batch size; the schedule multiplies it."""
        return self.learning_rate if self.lr_per is None else self.learning_rate * (batch_size / self.lr_per)

    def bind(self, axes: Any, shapes: Any, lengths: RunLengths | None = None, path: str = "optimizer") -> "Bound":
        """Returns the optimiser of one parameter tree.

        Args:
            axes: a tree like the parameters, with a `ssljax.layers.roles.ParameterAxes` for each leaf; a tuple of
                logical axis names, `()` or None for a leaf without role and height.
            shapes: the parameters, or their `jax.ShapeDtypeStruct`s.
            lengths: lengths that convert the durations of `freeze` to steps; not needed if all are integers.
            path: dotted path of the config group, for messages.

        Raises:
            UserError: a pattern matches no parameter, `layer_decay` is set for a model without layers, or a duration
                cannot be converted to steps.
            ValueError: `lengths` is missing.
        """
        leaves = describe(axes, shapes)
        lr = factors_of(self.lr_multipliers, leaves, f"{path}.lr_multipliers")
        wd = factors_of(self.wd_multipliers, leaves, f"{path}.wd_multipliers")
        if lengths is None and any(isinstance(duration, str) for _, duration in self.freeze):
            raise ValueError("bind needs lengths to convert the durations of freeze to steps")
        until = [
            (pattern, duration if lengths is None else durations.steps(duration, lengths, f"{path}.freeze.{pattern}"))
            for pattern, duration in self.freeze
        ]
        freeze = factors_of(until, leaves, f"{path}.freeze")
        by_height = factors_by_height(self.layer_decay, leaves, path) if self.layer_decay is not None else {}
        bound = {}
        for name, leaf in leaves.items():
            factor = float(lr.get(name, 1.0))
            if factor != 0 and name in by_height:
                factor = factor * by_height[name]
            decay = float(wd.get(name, leaf.effects.decays))
            if leaf.width_ratio != 1:
                self._check_mup(path)
                factor, decay = factor / leaf.width_ratio, decay * leaf.width_ratio
            bound[name] = dataclasses.replace(leaf, lr=factor, wd=decay, frozen_until=int(freeze.get(name, 0)))
        rule = self.rule(bound)
        if self.moment_dtype != "float32":
            rule = _stored(optax.with_extra_args_support(rule), jnp.dtype(self.moment_dtype))
        if any(leaf.frozen for leaf in bound.values()):
            rule = optax.masked(rule, lambda tree: map_leaves(bound, lambda leaf, _: not leaf.frozen, tree))
        return Bound(leaves=bound, rule=optax.with_extra_args_support(rule), axes=axes, shapes=shapes)

    def _check_mup(self, path: str) -> None:
        if not self.mup:
            known = ", ".join(name for name in REGISTRY if REGISTRY.get(name).mup)
            raise UserError(
                f"model.mup_base_width: muP is for optimisers whose updates do not depend on the size of gradients "
                f"({path}.name: {known}), got {type(self).__name__}"
            )

    def rule(self, leaves: Leaves) -> optax.GradientTransformation:
        """The update rule for the trained leaves; its `update` gets `lr` and `step` as extra arguments."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bound:
    """An optimiser of one parameter tree; its methods are pure functions, to be called inside the jitted step."""

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
        """Computes the updates of one step.

        Args:
            grads, params: trees like the bound parameters.
            opt_state: the optimiser's state.
            lr: scalar, the learning rate of this step (peak times schedule).
            step: scalar integer, the step of the run, which decides whether a leaf of `freeze` is still frozen.

        Returns:
            (updates to add to the parameters, new state). Frozen leaves get -0.0, since x + (-0.0) is bitwise x for
            every float x.
        """
        updates, opt_state = self.rule.update(grads, opt_state, params, lr=lr, step=step)

        def unless_frozen(leaf: Leaf, update: jax.Array) -> jax.Array:
            if leaf.frozen:
                return jnp.full_like(update, -0.0)
            if leaf.frozen_until:
                return jnp.where(step < leaf.frozen_until, -0.0, update)
            return update

        return map_leaves(self.leaves, unless_frozen, updates), opt_state

    def keep_frozen(self, new: Any, old: Any, step: jax.Array | int) -> Any:
        """Returns the tree `new` with the leaves of `old` where parameters are frozen at this step."""

        def chosen(leaf: Leaf, new: jax.Array, old: jax.Array) -> jax.Array:
            if leaf.frozen:
                return old
            return jnp.where(step < leaf.frozen_until, old, new) if leaf.frozen_until else new

        return map_leaves(self.leaves, chosen, new, old)

    def trainable(self, grads: Any) -> Any:
        """Sets the gradients of leaves that are never updated to 0, so that they do not enter the global norm."""
        return map_leaves(self.leaves, lambda leaf, g: jnp.zeros_like(g) if leaf.frozen else g, grads)

    def state_axes(self) -> Any:
        """Returns a tree like the optimiser's state with a tuple of logical axis names for each leaf.

        An array with the shape of a parameter has the parameter's names, so it is sharded like the parameter. An array
        with an axis of layers or experts keeps the names of these axes. Other axes (of counts, factored rows and
        columns, all small) have no names.
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
    """Clips gradients by their global norm (Pascanu et al. 2013, algorithm 1).

    If the norm is not finite, the clipped gradients are meaningless; the caller must check the norm.

    Args:
        grads: tree of gradients.
        max_norm: largest global norm; None: no clipping.

    Returns:
        (clipped gradients, global norm before clipping as a float32 scalar).
    """
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    if max_norm is None:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), norm


def per_leaf(
    choose: Callable[[Leaf], optax.GradientTransformation | None], leaves: Leaves
) -> optax.GradientTransformation:
    """Applies a transformation to each leaf on its own, mapped over the axes of layers and experts.

    The state is a tree like the parameters in which the state of its transformation stands for each leaf, with the axes
    of layers and experts in front (a count becomes [L]).

    Args:
        choose: leaf -> its transformation; None: the update of the leaf is unchanged.
        leaves: the table of leaves of the bound tree.
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


_MOMENTS = ("mu", "trace", "ema")  # first moments in the states of optax


def _stored(rule: optax.GradientTransformationExtraArgs, dtype: Any) -> optax.GradientTransformationExtraArgs:
    """A rule whose first moments are stored in a type and computed in float32.

    With the argument `mu_dtype` of optax, the decay itself is rounded to the narrow type: 0.9 to 0.898 in bfloat16.
    """

    def has_moments(node: Any) -> bool:
        return any(name in getattr(node, "_fields", ()) for name in _MOMENTS)

    def cast(state: Any, dtype: Any) -> Any:
        def of_node(node: Any) -> Any:
            if not has_moments(node):
                return node
            moments = {name: getattr(node, name) for name in _MOMENTS if name in node._fields}
            return node._replace(**{name: optax.tree.cast(tree, dtype) for name, tree in moments.items()})

        return jax.tree.map(of_node, state, is_leaf=has_moments)

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        updates, state = rule.update(updates, cast(state, jnp.float32), params, **more)
        return updates, cast(state, dtype)

    def init(params: Any) -> Any:
        state = rule.init(params)
        if not any(map(has_moments, jax.tree.leaves(state, is_leaf=has_moments))):
            raise UserError("optimizer.moment_dtype: this optimiser has no first moment; leave it at float32")
        return cast(state, dtype)

    return optax.GradientTransformationExtraArgs(init, update)


def _descend(leaves: Leaves) -> optax.GradientTransformationExtraArgs:
    """Multiplies the update of each leaf by -lr and by the leaf's factor, or by 0 while the leaf is frozen."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any, step: Any, **_: Any) -> tuple[Any, Any]:
        def scale(leaf: Leaf, u: jax.Array) -> jax.Array:
            rate = jnp.where(step < leaf.frozen_until, 0.0, lr) if leaf.frozen_until else lr
            return (-rate * leaf.lr * u).astype(u.dtype)

        return map_leaves(leaves, scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _decay(weight_decay: Any, leaves: Leaves) -> optax.GradientTransformation:
    """Adds weight_decay x the leaf's factor x the parameter to the update of each leaf."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def add(leaf: Leaf, u: jax.Array, p: jax.Array) -> jax.Array:
            return u + weight_decay * leaf.wd * p if leaf.wd else u

        return map_leaves(leaves, add, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2).

    p <- p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p).
    """

    mup: ClassVar[bool] = True

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

    v <- momentum v + g + weight_decay p;  p <- p - lr v. With `nesterov`, p <- p - lr (g + weight_decay p + momentum v)
    (Sutskever et al. 2013, in the form of PyTorch).
    """

    learning_rate: float = setting(0.1, gt=0, doc=_LEARNING_RATE)
    momentum: float = setting(0.9, ge=0, lt=1, doc="decay of the running sum of gradients (mu)")
    nesterov: bool = setting(False, doc="update along gradient + momentum v instead of v")

    def rule(self, leaves):
        return optax.chain(
            _decay(self.weight_decay, leaves), optax.trace(self.momentum, nesterov=self.nesterov), _descend(leaves)
        )


@dataclasses.dataclass(frozen=True)
class LARS(Optimizer):
    """LARS: SGD with a learning rate per layer (You, Gitman and Ginsburg 2017, algorithm 1).

    u = g + weight_decay p;  v <- momentum v + lr (trust |p| / |u|) u;  p <- p - v.

    |u| is the norm of the sum, as in the code of SimCLR and BYOL; the paper adds the norms of the two summands. If a
    norm is zero, the whole factor trust |p| / |u| is 1, as in the code of the authors, of SimCLR and of BYOL: a kernel
    that starts at zero makes its first step with `learning_rate` itself. Biases, norms, scales and single tokens have
    no trust ratio and no weight decay (SimCLR), so they train with `learning_rate` itself; if that is too large, reduce
    it by `lr_multipliers`.
    """

    learning_rate: float = setting(0.3, gt=0, doc=_LEARNING_RATE)
    weight_decay: float = setting(1e-6, ge=0, doc=_WEIGHT_DECAY)
    momentum: float = setting(0.9, ge=0, lt=1, doc="decay of the running sum of updates (m)")
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
    """LAMB: Adam with a trust ratio per layer (You et al. 2020, algorithm 2; with Adam's bias correction, phi(x) = x).

    u = Adam's direction + weight_decay p;  p <- p - lr (|p| / |u|) u. The ratio is 1 if a norm is zero. Biases, norms,
    scales and single tokens have neither a trust ratio nor weight decay.
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

    p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p);  m <- b2 m + (1 - b2) g. Learning rates are 3 to 10 times
    smaller than for AdamW, weight decays 3 to 10 times larger.
    """

    mup: ClassVar[bool] = True

    learning_rate: float = setting(1e-4, gt=0, doc=_LEARNING_RATE)
    weight_decay: float = setting(0.5, ge=0, doc=_WEIGHT_DECAY)
    b1: float = setting(0.9, ge=0, lt=1, doc="share of the momentum in the argument of the sign (beta_1)")
    b2: float = setting(0.99, ge=0, lt=1, doc="decay of the momentum (beta_2)")

    def rule(self, leaves):
        return optax.chain(optax.scale_by_lion(self.b1, self.b2), _decay(self.weight_decay, leaves), _descend(leaves))


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Factored second moments (Shazeer and Stern 2018, algorithm 4).

    The direction is g / sqrt(v). For a leaf with two axes of at least `min_factor_dim`, v is stored as row means and
    column means. The direction is clipped to a root mean square of `clip_rms`. With `relative` it is multiplied by the
    root mean square of the parameter (at least 1e-3), so that `learning_rate` is relative to the size of the weights.
    With `momentum` it is averaged over steps. Weight decay is decoupled, as in `adamw`.
    """

    learning_rate: float = setting(
        1e-2, gt=0, doc="peak learning rate; with `relative` it is relative to the size of the weights"
    )
    decay_rate: float = setting(
        0.8, gt=0, le=1, doc="exponent c: the decay of the second moment (beta_2) at update t is 1 - t^-c"
    )
    min_factor_dim: int = setting(128, ge=1, doc="shortest length of two axes for which the second moment is factored")
    clip_rms: float | None = setting(
        1.0, gt=0, doc="largest root mean square of the direction of a leaf (d); None: no clipping"
    )
    relative: bool = setting(True, doc="multiply steps by the root mean square of the parameter")
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
    """Muon: orthogonalised momentum for hidden matrices, AdamW for all other parameters (Jordan et al. 2024).

    Parameters of role "matrix" are updated by momentum (bias-corrected, Nesterov) that is orthogonalised by
    `newton_schulz_steps` steps of the quintic Newton-Schulz iteration with coefficients (3.4445, -4.7750, 2.0315), from
    optax. Its matrix products have the default precision of the backend (bfloat16 on TPUs, TF32 on recent GPUs), which
    suffices: the authors run the iteration in bfloat16. A kernel with more than two axes is treated as a matrix: all
    axes except the last form the rows. Parameters of other roles are updated by AdamW with b1, b2 and eps. Learning
    rate and weight decay are the same for both.

    With scale "rms" (Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4), the learning rates and weight
    decays of AdamW can be reused. With "spectral" (Jordan et al.), learning rates are about 0.02, which is too large
    for the leaves of AdamW: reduce theirs by `lr_multipliers`.
    """

    weight_decay: float = setting(0.05, ge=0, doc=_WEIGHT_DECAY)
    momentum: float = setting(0.95, ge=0, lt=1, doc="decay of the running mean of gradients (mu)")
    nesterov: bool = setting(
        True, doc="orthogonalise momentum x m + (1 - momentum) x g instead of m (g: gradient, m: its running mean)"
    )
    newton_schulz_steps: int = setting(5, ge=1, doc="number of iterations of the orthogonalisation")
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
            # Axes in neither tuple (layers and experts) are mapped over.
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
