"""Linear probe: multinomial logistic regression on frozen, standardised features."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.base.schema import setting
from ssljax.evals.base import DrawnProbe, Metrics, Reader, mean_and_std, standardizer

L2 = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LEARNING_RATES = (0.001, 0.01, 0.1)
ITERATIONS = 300  # limit of L-BFGS for each value of l2
TOLERANCE = 1e-5  # largest entry of the gradient at convergence


@dataclasses.dataclass(frozen=True)
class Linear(DrawnProbe):
    """Accuracy of a linear classifier. Its hyper-parameter is selected, then it is fitted on the whole fitting split.

    Features are standardised with the statistics of the fitting split. The hyper-parameter is selected on
    `select_split`, or on a fifth of the fitting split. With `labels_per_class` only the drawn labels are used: the
    hyper-parameter is selected by cross-validation on them. The selected value is reported, as the median over draws.
    """

    solver: Literal["lbfgs", "sgd"] = setting(
        "lbfgs",
        doc="`lbfgs`: full batch, with hyper-parameter `l2`; `sgd`: momentum 0.9, cosine decay, no weight decay, with "
        "the learning rate as hyper-parameter",
    )
    l2: tuple[float, ...] = setting(
        L2, gt=0, doc="candidates of `lbfgs`: coefficient of |W|^2 / 2, added to the mean cross-entropy"
    )
    learning_rates: tuple[float, ...] = setting(LEARNING_RATES, gt=0, doc="candidates of `sgd`")
    epochs: int = setting(100, ge=1, doc="epochs of `sgd`")
    sgd_batch: int = setting(256, ge=1, doc="batch size of `sgd`")

    def validate(self) -> None:
        super().validate()
        for name in ("l2", "learning_rates"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got an empty list, must have at least one value")
        if self.labels_per_class == 1 and len(self.candidates()) > 1:
            key = "l2" if self.solver == "lbfgs" else "learning_rates"
            raise ValueError(f"{key}: got {len(self.candidates())} values, must be one value if labels_per_class is 1")

    def summary(self) -> str:
        text = "L-BFGS" if self.solver == "lbfgs" else f"SGD, {self.epochs} epochs"
        return text + self.label_summary()

    def candidates(self) -> tuple[float, ...]:
        """Returns the values of the hyper-parameter, strongest regularisation first."""
        return tuple(sorted(self.l2, reverse=True)) if self.solver == "lbfgs" else tuple(sorted(self.learning_rates))

    def hyper_parameter(self) -> str:
        """Returns the name of the hyper-parameter in the metrics."""
        return "l2" if self.solver == "lbfgs" else "learning_rate"

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        return (*mean_and_std("accuracy", [0.0] * self.draws), self.hyper_parameter())

    def fitter(self, classes: int, values: tuple[float, ...]) -> "Fit":
        """Returns a function (x, y, weight) -> heads, one for each value of the hyper-parameter."""
        if self.solver == "lbfgs":
            return functools.partial(logistic_path, l2=jnp.asarray(values), classes=classes)
        return functools.partial(
            logistic_sgd,
            learning_rates=jnp.asarray(values),
            key=jax.random.key(self.seed),
            classes=classes,
            epochs=self.epochs,
            batch=self.sgd_batch,
        )

    def run(self, reader: Reader) -> Metrics:
        fit_x, fit_y = reader.features(self.fit_split, self.feature), reader.labels(self.fit_split)
        test_x, test_y = reader.features(self.test_split, self.feature), reader.labels(self.test_split)
        mean, scale = standardizer(fit_x)
        fit_x, test_x = _scaled(fit_x, mean, scale), _scaled(test_x, mean, scale)
        values = self.candidates()
        fitter = functools.partial(self.fitter, int(fit_y.max()) + 1)
        fit = fitter(values)

        def select_value(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> int:
            if len(values) == 1:
                return 0
            if self.labels_per_class is not None:
                return select(fit, x, y, folds_of(y, min(5, self.labels_per_class), rng))
            if self.select_split is not None:
                select_x = _scaled(reader.features(self.select_split, self.feature), mean, scale)
                return select_on(fit, x, y, select_x, reader.labels(self.select_split))
            return select(fit, x, y, folds_of(y, 5, rng)[:1])  # one fold of five: an 80/20 split

        accuracies, chosen = [], []
        for draw in range(self.draws):
            rng = np.random.default_rng((self.seed, draw))
            rows = self.draw_rows(fit_y, rng, reader.path)
            x, y = fit_x[rows], fit_y[rows]
            value = values[select_value(x, y, rng)]
            head = fitter((value,))(x, y, np.ones(len(y), np.float32))[0]
            accuracies.append(float(np.mean(predict(head, test_x) == test_y)))
            chosen.append(value)
        return mean_and_std("accuracy", accuracies) | {self.hyper_parameter(): statistics.median_low(chosen)}


Fit = Callable[..., jax.Array]  # (x [N, D], y [N], weight [N]) -> heads [candidates, D + 1, classes]


# Lower precision would leave errors that the solver magnifies along axes of small variance.
@functools.partial(jax.jit, static_argnames="classes")
@jax.default_matmul_precision("highest")
def logistic_path(x, y, weight, *, l2, classes: int) -> jax.Array:
    """Multinomial logistic regression by L-BFGS for each value of `l2`, starting from the previous solution.

    Minimises sum_i weight_i CE_i / sum_i weight_i + l2/2 |W|^2; the bias is not penalised. The iterations run along
    the principal axes of the features, each scaled by the bound variance/2 + l2 of its curvature (Boehning 1992). With
    this scaling, features of very unequal variance converge in a few dozen iterations, unlike with plain L-BFGS. If
    there are fewer rows than columns, the number of axes is the number of rows.

    Args:
        x: [N, D] standardised features.
        y: [N] classes.
        weight: [N], 0 = left out; all folds thus use one compiled program.
        l2: [L], largest first.
        classes: number of classes.

    Returns:
        Heads [L, D + 1, classes]; the last row is the bias.
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    axes_DxR, variance_R = _principal_axes(x)
    x_NxR = x @ axes_DxR
    optimizer = optax.lbfgs(memory_size=10)

    def solve(head_CxR, strength):
        scale = jnp.append(jax.lax.rsqrt(variance_R / 2 + strength), 1.0)

        def objective(scaled_CxR):
            head = scale * scaled_CxR
            penalty = strength / 2 * jnp.sum(jnp.square(head[:, :-1]))
            return jnp.sum(weight * _cross_entropy(head, x_NxR, y)) / jnp.sum(weight) + penalty

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry):
            scaled, state, i, _ = carry
            value, grad = value_and_grad(scaled, state=state)
            updates, state = optimizer.update(grad, state, scaled, value=value, grad=grad, value_fn=objective)
            new = optax.apply_updates(scaled, updates)
            moved = jnp.any(new != scaled)  # without progress in float32 the line search has converged
            return new, state, i + 1, moved & (jnp.max(jnp.abs(grad / scale)) > TOLERANCE)

        scaled = head_CxR / scale
        start = (scaled, optimizer.init(scaled), jnp.int32(0), jnp.bool_(True))
        head_CxR = scale * jax.lax.while_loop(lambda c: c[3] & (c[2] < ITERATIONS), step, start)[0]
        return head_CxR, head_CxR

    heads_LxCxR = jax.lax.scan(solve, jnp.zeros((classes, x_NxR.shape[1] + 1)), l2)[1]
    return jnp.concatenate([axes_DxR @ heads_LxCxR[..., :-1].mT, heads_LxCxR[..., -1:].mT], axis=1)


def _principal_axes(x_NxD):
    """Returns orthonormal axes [D, R] that span the rows, R = min(N, D), and the mean square of the rows along each."""
    n, d = x_NxD.shape
    span_DxR = jnp.linalg.qr(x_NxD.T)[0] if n < d else jnp.eye(d)
    x_NxR = x_NxD @ span_DxR
    variance_R, turn_RxR = jnp.linalg.eigh(x_NxR.T @ x_NxR / n)
    return span_DxR @ turn_RxR, jnp.maximum(variance_R, 0.0)


@functools.partial(jax.jit, static_argnames=("classes", "epochs", "batch"))
@jax.default_matmul_precision("highest")
def logistic_sgd(x, y, weight, *, learning_rates, key, classes: int, epochs: int, batch: int) -> jax.Array:
    """Logistic regression by SGD (momentum 0.9, cosine decay to 0, no weight decay), for all learning rates at once.

    Shapes as in `logistic_path`; returns heads [learning rates, D + 1, classes]. An epoch is N // batch batches of a
    new permutation.
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    batch = min(batch, len(y))
    per_epoch = len(y) // batch

    def mean_loss(head, rows):
        w = weight[rows]
        return jnp.sum(w * _cross_entropy(head, x[rows], y[rows])) / jnp.maximum(jnp.sum(w), 1e-9)

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(y))[: per_epoch * batch]

        def step(carry, inputs):
            heads, momenta = carry
            rows, decay = inputs
            grads = jax.vmap(jax.grad(mean_loss), (0, None))(heads, rows)
            momenta = 0.9 * momenta + grads
            return (heads - (decay * learning_rates)[:, None, None] * momenta, momenta), None

        progress = (number * per_epoch + jnp.arange(per_epoch)) / (epochs * per_epoch)
        return jax.lax.scan(step, carry, (order.reshape(per_epoch, batch), (1 + jnp.cos(jnp.pi * progress)) / 2))

    zeros = jnp.zeros((len(learning_rates), classes, x.shape[1] + 1))
    return jax.lax.scan(epoch, (zeros, zeros), jnp.arange(epochs))[0][0].mT


def folds_of(labels_N: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Returns masks [folds, N] of the held-out examples of each fold, with classes spread evenly over folds."""
    number = np.empty(len(labels_N), np.int64)
    for label in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        number[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return number == np.arange(folds)[:, None]


def select(fit: Fit, x, y, held_out_FxN: np.ndarray) -> int:
    """Returns the index of the candidate with the best held-out accuracy over all folds."""
    logits, labels = [], []
    for held_out in held_out_FxN:
        heads = fit(x, y, (~held_out).astype(np.float32))
        logits.append(_logits(heads, x[held_out]))
        labels.append(y[held_out])
    return _best(np.concatenate(logits, axis=1), np.concatenate(labels))


def select_on(fit: Fit, x, y, select_x, select_y) -> int:
    """Returns the index of the candidate with the best accuracy on a selection split."""
    return _best(_logits(fit(x, y, np.ones(len(y), np.float32)), select_x), select_y)


def predict(head, x) -> np.ndarray:
    """Returns the classes [N] that a head [D + 1, C] predicts for features [N, D]."""
    return np.argmax(_logits(head, x), axis=-1)


def _best(logits_LxNxC: np.ndarray, labels_N: np.ndarray) -> int:
    """Returns the candidate of highest accuracy; ties, common with few labels, go to the lowest cross-entropy."""
    # A class without fitting labels has no logit; it counts as wrong for all candidates.
    labels = np.minimum(labels_N, logits_LxNxC.shape[-1] - 1)
    accuracy = (logits_LxNxC.argmax(axis=-1) == labels_N).mean(axis=-1)
    log_sum = np.logaddexp.reduce(logits_LxNxC, axis=-1)
    loss = (log_sum - logits_LxNxC[:, np.arange(len(labels)), labels]).mean(axis=-1)
    return min(range(len(accuracy)), key=lambda i: (-accuracy[i], loss[i]))


def _cross_entropy(head_CxD, x_NxD, y_N):
    """Returns the cross-entropies [N]. With heads of shape [C, D + 1] XLA does not transpose x for the gradient."""
    logits = jnp.matmul(x_NxD, head_CxD[:, :-1].T, precision=jax.lax.Precision.HIGHEST) + head_CxD[:, -1]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, y_N[:, None], axis=-1)[:, 0]


def _logits(heads, x: np.ndarray) -> np.ndarray:
    heads = np.asarray(heads)
    return x @ heads[..., :-1, :] + heads[..., -1:, :]


def _scaled(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return ((x - mean) / scale).astype(np.float32)
