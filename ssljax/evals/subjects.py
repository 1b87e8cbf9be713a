"""The subjects of evaluations: a model, the shapes of a model, or the raw input."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import data, parallel, views
from ssljax.evals.base import Metrics
from ssljax.evals.held_out import LossFn, mean_loss
from ssljax.objectives.base import Loss
from ssljax.views.keys import uniforms

_HIDDEN_FROM_FEATURES = ("label",)
_KEY = "view_key"  # element of a batch: seed and row of the random views of an example, int32 [B, 2]
_LEFT_OUT = 0.2  # share of the tokens that a view of a text leaves out
_CROPS = (0.3, 1.0)  # share of the pixels in a view of an image, if the objective has no augmentation
_SCORED_ROWS = 4096  # rows in a block of `Programs.scored`


class Programs:
    """The functions of an objective, each compiled once, and the batches that they run on.

    Every batch has `batch_size` rows. The last batch is filled up with copies of the last example.

    Args:
        objective: see `ssljax.evals.harness.Evaluator`.
        feature_names: names of the features to keep.
        put: host batch -> device batch.
        batch_size: rows of a batch.
        loss_fn: see `ssljax.evals.harness.Evaluator`.
    """

    def __init__(
        self,
        objective: Any,
        feature_names: Collection[str],
        put: Callable[[Any], Any],
        batch_size: int,
        loss_fn: LossFn | None,
    ):
        self.feature_names = set(feature_names)
        self.put, self.batch_size, self.loss_fn = put, batch_size, loss_fn or _no_loss
        self.objective = objective

        def features(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
            out = objective.features(params, extra, views.centered(objective.prepare(batch)))
            return {name: value.astype(jnp.float32) for name, value in out.items() if name in self.feature_names}

        def score(params: Any, extra: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            return objective.score(params, extra, views.centered(objective.prepare(batch)))

        def two_views(params: Any, extra: Any, batch: Any) -> tuple[jax.Array, ...]:
            seeds = batch[_KEY]
            batch = objective.prepare({k: v for k, v in batch.items() if k != _KEY})
            keys = jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(seeds)
            made = [_view(objective.unwrapped, views.fold_in(keys, number), batch, number) for number in (0, 1)]
            return tuple(objective.features(params, extra, view)["pooled"].astype(jnp.float32) for view in made)

        def predict(params: Any, extra: Any, batch: Any) -> jax.Array:
            logits = objective.features(params, extra, views.centered(objective.prepare(batch)))["logits"]
            return jnp.argmax(logits, axis=-1)

        self.features, self.score, self.predict = jax.jit(features), jax.jit(score), jax.jit(predict)
        self.two_views = jax.jit(two_views)
        self.spectrograms = jax.jit(lambda batch: frame_statistics(objective.prepare(batch)["spectrogram"]))

    @property
    def scores_pixels(self) -> bool:
        """True if the scored elements are made of images."""
        return bool(getattr(self.objective, "data_kind", None) == "images")

    @property
    def has_views(self) -> bool:
        """True if the model reads images or texts."""
        return getattr(self.objective, "reads", None) in ("images", "tokens", "sequences")

    def scored(self, arrays: Mapping[str, np.ndarray], fit: bool = False) -> np.ndarray:
        """Returns bool [N, T], the tokens of a split that `score` counts; all but padding if the objective has none.

        With `fit`, the tokens from which n-gram controls learn.
        """
        arrays = {k: v for k, v in arrays.items() if v.dtype != object and not isinstance(v, data.LazyRows)}
        blocks = []
        for start in range(0, len(arrays["id"]), _SCORED_ROWS):
            rows = {k: v[start : start + _SCORED_ROWS] for k, v in arrays.items()}
            mask = self.objective.fitted(rows) if fit else self.objective.scored(rows)
            if mask is None:
                mask = rows["segment_ids"] > 0 if "segment_ids" in rows else np.ones(rows["tokens"].shape, bool)
            blocks.append(np.asarray(mask))
        return np.concatenate(blocks)

    def batches(
        self, arrays: Mapping[str, np.ndarray], leave_out: Sequence[str] = (), batch_size: int | None = None
    ) -> Iterator[tuple[Any, int]]:
        """Yields device batches of `batch_size` rows, and the number of rows of each that are not copies."""
        arrays = {k: v for k, v in arrays.items() if k not in leave_out and v.dtype != object}
        size, batch_size = len(arrays["id"]), batch_size or self.batch_size
        for start in range(0, size, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), size - 1)
            yield self.put({k: selected(v, rows) for k, v in arrays.items()}), min(batch_size, size - start)


def selected(array: Any, rows: np.ndarray) -> Any:
    """Returns rows of an array; lazy ones are not decoded yet, until a process reads its own."""
    return array.select(rows) if isinstance(array, data.LazyRows) else array[rows]


def _view(objective: Any, keys: jax.Array, batch: Any, number: int) -> Any:
    """Returns a prepared batch with the first or second of two random views of each image or text.

    Images have the augmentation of the objective, or are cropped if it has none; of texts, tokens are left out.
    """
    if objective.reads != "images" and objective.data_kind != "images":
        segments = batch.get("segment_ids", jnp.ones_like(batch["tokens"]))
        left_out = uniforms(keys, segments.shape[1]) < _LEFT_OUT
        return {**batch, "segment_ids": jnp.where(left_out, 0, segments)}
    augment = getattr(objective, "augment", views.Single())
    if augment == views.Single(size=augment.size):
        augment = dataclasses.replace(augment, crop_scale=_CROPS)
    view = augment(keys, batch["image"], batch.get("aspect"))
    view = view["global"] if isinstance(view, Mapping) else view
    image = view[:, number % view.shape[1]] if view.ndim == 5 else view
    return {**{k: v for k, v in batch.items() if k != "aspect"}, "image": image}


def with_keys(arrays: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Returns arrays with the seed and the row of each example, from which its random views are drawn."""
    rows = np.arange(len(arrays["id"]), dtype=np.int32)
    return {**arrays, _KEY: np.stack([np.full_like(rows, seed), rows], 1)}


def _no_loss(params: Any, extra: Any, batch: Any, number: int, count: int) -> Loss:
    raise ValueError("the evaluation `loss` needs a loss_fn")


class Subject:
    """The model or control that an evaluation measures. `key` names the arrays of a split or of prompts."""

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns {name: features [N, ...]}."""
        raise NotImplementedError

    def scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns log-probabilities [N] and numbers of scored tokens [N]."""
        raise NotImplementedError

    def views(self, key: str, arrays: Mapping[str, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pooled features [N, D] of two random views of each image."""
        raise NotImplementedError

    def losses(self, batches: Iterator[tuple[Any, int]]) -> Metrics:
        """Returns the loss and metrics of the objective over batches and the numbers of their rows that count."""
        raise NotImplementedError


@dataclasses.dataclass
class Model(Subject):
    """A model. Features and scores are computed once and kept."""

    programs: Programs
    params: Any
    extra: Any
    computed: dict[str, Any] = dataclasses.field(default_factory=dict)

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._once(f"features {key}", self.programs.features, arrays, _HIDDEN_FROM_FEATURES)

    def scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._once(f"scores {key}", self.programs.score, arrays)

    def views(self, key: str, arrays: Mapping[str, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._once(f"views {key}", self.programs.two_views, with_keys(arrays, seed), _HIDDEN_FROM_FEATURES)

    def predicted(self, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the predicted classes [N] of a classifier."""
        return self._once(f"predicted {key}", self.programs.predict, arrays, _HIDDEN_FROM_FEATURES)

    def losses(self, batches: Iterator[tuple[Any, int]]) -> Metrics:
        loss_fn = self.programs.loss_fn
        found = (loss_fn(self.params, self.extra, batch, i, rows) for i, (batch, rows) in enumerate(batches))
        return mean_loss(parallel.fetch(loss) for loss in found)

    def _once(
        self, key: str, program: Callable[..., Any], arrays: Mapping[str, np.ndarray], leave_out: Sequence[str] = ()
    ) -> Any:
        if key not in self.computed:
            call = functools.partial(program, self.params, self.extra)
            outputs: list[Any] = []
            pending = None
            for batch, rows in self.programs.batches(arrays, leave_out):
                out = call(batch)  # asynchronous: the previous batch is fetched while the device computes this one
                if pending is not None:
                    outputs.append(_fetched(*pending))
                pending = out, rows
            outputs.append(_fetched(*pending))  # type: ignore[misc]
            self.computed[key] = jax.tree.map(lambda *xs: np.concatenate(xs), *outputs)
        return self.computed[key]


def _fetched(outputs: Any, rows: int) -> Any:
    return jax.tree.map(lambda x: x[:rows], parallel.fetch(outputs))


@dataclasses.dataclass
class ModelShapes(Subject):
    """The outputs of a model as zeros that take no memory; nothing is computed."""

    programs: Programs
    params: Any
    extra: Any

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._zeros(self.programs.features, arrays, _HIDDEN_FROM_FEATURES)

    def scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._zeros(self.programs.score, arrays)

    def views(self, key: str, arrays: Mapping[str, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._zeros(self.programs.two_views, with_keys(arrays, seed), _HIDDEN_FROM_FEATURES)

    def losses(self, batches: Iterator[tuple[Any, int]]) -> Metrics:
        batch, rows = next(batches)
        loss_of = lambda params, extra, batch: self.programs.loss_fn(params, extra, batch, 0, rows)  # noqa: E731
        shapes = jax.eval_shape(loss_of, self.params, self.extra, batch)
        return mean_loss([jax.tree.map(lambda s: np.zeros(s.shape), shapes)])

    def _zeros(
        self, program: Callable[..., Any], arrays: Mapping[str, np.ndarray], leave_out: Sequence[str] = ()
    ) -> Any:
        batch, _ = next(self.programs.batches(arrays, leave_out))
        shapes = jax.eval_shape(program, self.params, self.extra, batch)
        size = len(arrays["id"])
        return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), (size, *s.shape[1:])), shapes)


def frame_statistics(spectrograms: jax.Array) -> jax.Array:
    """Returns mean and standard deviation over the frames of spectrograms [B, T, F], float32 [B, 2 F]."""
    return jnp.concatenate([jnp.mean(spectrograms, 1), jnp.std(spectrograms, 1)], -1)


@dataclasses.dataclass
class RawInput(Subject):
    """The input instead of features of the model.

    Flattened pixels; of sounds, mean and standard deviation of each band of the spectrogram over the frames; of graphs,
    the sum of the features of the nodes.
    """

    programs: Programs

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "nodes" in arrays:
            return dict.fromkeys(self.programs.feature_names, arrays["nodes"].sum(1))  # of labels: their numbers
        if "audio" in arrays:
            batches = self.programs.batches(arrays, _HIDDEN_FROM_FEATURES)
            found = [np.asarray(parallel.fetch(self.programs.spectrograms(batch)))[:rows] for batch, rows in batches]
            return dict.fromkeys(self.programs.feature_names, np.concatenate(found))
        scale = np.float32(255 if arrays["image"].dtype == np.uint8 else 1)
        flat = np.asarray(arrays["image"]).reshape(len(arrays["image"]), -1).astype(np.float32) / scale
        return dict.fromkeys(self.programs.feature_names, flat)  # every feature is the flattened input
