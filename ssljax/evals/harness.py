"""Runs evaluations on a model: features are extracted once for all of them, by one compiled function."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.hashing import digest
from ssljax.evals.base import REGISTRY, Evaluation, Metrics, plain

# Flattened input larger than this (a 74 x 74 colour image) is no practical control: its copy of a split fills memory.
RAW_LIMIT = 16_384

Load = Callable[..., dict[str, np.ndarray]]


def build(config_evals: Mapping[str, Any]) -> dict[str, Evaluation]:
    """The evaluations of the config group `evals`: `{name: {type, source, fit_split, ...}}`.

    `type` names the registry entry; left out, it is the name of the evaluation.

    Raises:
        UserError: unknown type or key, wrong type, impossible value; the line names `evals.<name>.<key>`.
    """
    out = {}
    for name, values in config_evals.items():
        path = f"evals.{name}"
        if not isinstance(values, Mapping):
            raise UserError(f"{path}: got {values!r}, must be a group of keys")
        kind = values.get("type", name)
        own = {k: v for k, v in values.items() if k != "type"}
        evaluation = schema.build(REGISTRY.get(kind, f"{path}.type"), own, path)
        object.__setattr__(evaluation, "_registry_name", kind)
        out[name] = evaluation
    return out


def settings(evaluation: Evaluation) -> dict[str, Any]:
    """The complete config group of an evaluation, defaults included."""
    values = schema.to_dict(evaluation)
    return {"type": values.pop("name", type(evaluation).__name__), **values}


class Evaluator:
    """The evaluations of a run, bound to its objective and data.

    Features and scores come from two functions, each compiled once: every batch has `batch_size` rows, the last one
    filled up by repetition. Labels are not shown to the objective when it makes features. Host arrays of a split are
    kept from call to call.

    Args:
        objective: see `ssljax.objectives.base`; `prepare`, `features`, `score` and `classes` are asked.
        config_evals: the config group `evals`.
        data_config: the `data` group that the run trains on; an evaluation may name another source.
        put: host batch -> device batch (sharded over the mesh).
        batch_size: rows of an evaluation batch, a multiple of the number of devices that share it.
        loss_fn: (params, extra, device batch, step) -> {metric: scalar} with train=False; `step` numbers the batch
            and fixes its random key. Needed by `loss`.
        tokenize: texts -> {"tokens": [n, T], ...} in the form of the data; needed by `zero_shot`.
        load: `ssljax.data.load_split`, or what stands for it in a test: (data_config, split, source=, keys=, where=,
            max_examples=) -> dict of arrays with "id"; for text its attributes `bytes` and `tokens` give bits per
            byte, `classes` the names of the labels.
    """

    def __init__(
        self,
        objective: Any,
        config_evals: Mapping[str, Any],
        data_config: Any,
        put: Callable[[Any], Any],
        batch_size: int = 256,
        *,
        loss_fn: Callable[..., Mapping[str, Any]] | None = None,
        tokenize: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None,
        load: Load | None = None,
    ):
        self.evaluations = build(config_evals)
        self.objective = objective
        self.data_config, self.put, self.batch_size = data_config, put, batch_size
        self.loss_fn, self.tokenize = loss_fn or _no_loss, tokenize
        self._load = load
        self._splits: dict[str, dict[str, np.ndarray]] = {}
        self._sizes: dict[str, dict[str, int]] = {}
        self.wanted = {name for e in self.evaluations.values() for name in e.wanted()} | {"pooled"}

        def features(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
            out = objective.features(params, extra, objective.prepare(batch))
            return {name: value.astype(jnp.float32) for name, value in out.items() if name in self.wanted}

        def score(params: Any, extra: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            return objective.score(params, extra, objective.prepare(batch))

        self._features, self._score = jax.jit(features), jax.jit(score)

    def check(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, Collection[str]]:
        """Tell a mistake before training and not after it; `params` and `extra` may be shapes.

        Returns:
            {evaluation: names of its metrics}, empty where they are known only once it has run.

        Raises:
            UserError: as `run` and `controls`.
        """
        outline = _Outline(self, params, extra)
        chosen = {name: self.evaluations[name] for name in self._chosen(names)}
        return {name: e.check(_Reader(self, name, e, outline)) for name, e in chosen.items()}

    def run(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, Metrics]:
        """{evaluation: {metric: value}} for a model; `names` None = all. NaN where features are not finite.

        Raises:
            UserError: unknown name, or data or objective lack what an evaluation needs.
        """
        return self._run(_Model(self, params, extra), self._chosen(names))

    def controls(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, dict[str, Metrics]]:
        """{control: {evaluation: {metric: value}}}: what the trained model has to beat.

        "untrained": the same evaluations of the given initial `params` and `extra`; "raw": of the flattened input in
        the place of features; then those that need no encoder ("majority", "chance", "unigram", "bigram").
        """
        chosen = self._chosen(names)
        untrained = _Model(self, params, extra)
        out = {"untrained": self._run(untrained, chosen)}
        raw = _Raw(self)
        out["raw"] = self._run(raw, [n for n in chosen if self.evaluations[n].on_raw_input and raw.takes(self, n)])
        for name in chosen:
            evaluation = self.evaluations[name]
            for control, metrics in evaluation.trivial(_Reader(self, name, evaluation, untrained)).items():
                out.setdefault(control, {})[name] = metrics
        return {control: results for control, results in out.items() if results}

    def records(self, step: int, results: Mapping[str, Metrics], of: str = "trained") -> list[dict[str, Any]]:
        """The lines of evals.jsonl, one a result, as JSON values.

        Keys: step, eval, type, of ("trained" or the control), summary, better, headline (names of the metrics to show
        first), metrics, settings (the keys of the evaluation: k, temperature, splits, ...), sizes (examples a split),
        and warning where the kind of number needs one.
        """
        lines = []
        for name, metrics in results.items():
            evaluation = self.evaluations[name]
            own = settings(evaluation)
            line = {
                "step": int(step),
                "eval": name,
                "type": own.pop("type"),
                "of": of,
                "summary": evaluation.summary(),
                "better": evaluation.better,
                "headline": [m for m in evaluation.headline() if m in metrics],
                "metrics": {metric: plain(value) for metric, value in metrics.items()},
                "settings": {k: v for k, v in own.items() if v not in (None, [], {}) and k != "every_steps"},
                "sizes": dict(self._sizes.get(name, {})),
            }
            lines.append(line | ({"warning": evaluation.warning} if evaluation.warning else {}))
        return lines

    def embedding(self, params: Any, extra: Any, name: str, *, max_examples: int = 2000) -> dict[str, np.ndarray]:
        """What the report's picture needs, from the test split of the evaluation `name`.

        Returns:
            "features" [N, D], with "label" [N] and "images" where the data has them; nothing if features diverged.
        """
        evaluation = dataclasses.replace(self.evaluations[name], max_examples=max_examples)
        reader = _Reader(self, name, evaluation, _Model(self, params, extra))
        arrays = reader.arrays(evaluation.test_split)
        try:
            out = {"features": reader.features(evaluation.test_split, evaluation.wanted()[0])}
        except _NotFinite:
            return {}
        return out | {new: arrays[key] for key, new in (("label", "label"), ("image", "images")) if key in arrays}

    def _chosen(self, names: Sequence[str] | None) -> list[str]:
        for name in names or ():
            if name not in self.evaluations:
                hint = nearest(name, self.evaluations)
                known = ", ".join(self.evaluations) or "none"
                raise UserError(f"evals: unknown evaluation {name!r}{hint} (in this config: {known})")
        return list(self.evaluations if names is None else names)

    def _run(self, subject: "_Model | _Raw", names: Sequence[str]) -> dict[str, Metrics]:
        out = {}
        for name in names:
            reader = _Reader(self, name, self.evaluations[name], subject)
            try:
                out[name] = self.evaluations[name].run(reader)
            except _NotFinite:  # a diverged model has no accuracy; the run goes on and the table says so
                out[name] = dict.fromkeys(self.evaluations[name].headline(), float("nan"))
            self._sizes.setdefault(name, {}).update(reader.sizes)
        return out

    def split_arrays(self, evaluation: Evaluation, split: str) -> tuple[str, dict[str, np.ndarray]]:
        """(cache key, host arrays) of a split of an evaluation's source."""
        options = {k: getattr(evaluation, k) for k in ("source", "keys", "where", "max_examples")}
        key = digest({"split": split, **options})
        if key not in self._splits:
            load = self._load
            if load is None:
                from ssljax import data

                load = data.load_split
            given = {k: v for k, v in options.items() if v is not None}
            arrays = load(self.data_config, split, **given)
            if not len(arrays["id"]):
                source = evaluation.source or self.data_config.source
                raise UserError(f"data.split: split {split!r} of {source!r} is empty")
            self._splits[key] = arrays
        return key, self._splits[key]

    def batches(self, arrays: Mapping[str, np.ndarray], leave_out: Sequence[str] = ()) -> Iterator[tuple[Any, int]]:
        """(device batch, number of rows that count), all of `batch_size` rows; the last example fills up the last."""
        arrays = {k: v for k, v in arrays.items() if k not in leave_out and v.dtype != object}
        size = len(arrays["id"])
        for start in range(0, size, self.batch_size):
            rows = np.minimum(np.arange(start, start + self.batch_size), size - 1)
            yield self.put({k: v[rows] for k, v in arrays.items()}), min(self.batch_size, size - start)


class _NotFinite(Exception):
    """The features of a model are not finite numbers."""


@dataclasses.dataclass
class _Model:
    """A model under evaluation, with what was computed from it so far (for one call of `run`)."""

    evaluator: Evaluator
    params: Any
    extra: Any
    cache: dict[str, Any] = dataclasses.field(default_factory=dict)

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        extract = functools.partial(self.evaluator._features, self.params, self.extra)
        return self._once(f"features {key}", extract, arrays, ("label",))

    def scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._once(f"scores {key}", functools.partial(self.evaluator._score, self.params, self.extra), arrays)

    def losses(self, batches: Iterable[Any]) -> Metrics:
        """The mean over batches of each metric."""
        loss_fn = self.evaluator.loss_fn
        found = [jax.device_get(loss_fn(self.params, self.extra, batch, i)) for i, batch in enumerate(batches)]
        return {name: sum(float(metrics[name]) / len(found) for metrics in found) for name in found[0]}

    def _once(self, key: str, call: Callable[[Any], Any], arrays: Mapping[str, np.ndarray], leave_out: Any = ()) -> Any:
        if key not in self.cache:
            parts: list[Any] = []
            pending = None
            for batch, rows in self.evaluator.batches(arrays, leave_out):
                out = call(batch)  # asynchronous: the device works on this batch while the one before is fetched
                if pending is not None:
                    parts.append(_fetch(*pending))
                pending = out, rows
            parts.append(_fetch(*pending))  # type: ignore[misc]
            self.cache[key] = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        return self.cache[key]


@dataclasses.dataclass
class _Outline:
    """What a model would give, by shapes alone: zeros that take no memory, and nothing is computed."""

    evaluator: Evaluator
    params: Any
    extra: Any

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._zeros(self.evaluator._features, arrays, ("label",))

    def scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._zeros(self.evaluator._score, arrays)

    def losses(self, batches: Iterator[Any]) -> Metrics:
        return dict.fromkeys(jax.eval_shape(self.evaluator.loss_fn, self.params, self.extra, next(batches), 0), 0.0)

    def _zeros(self, call: Callable[..., Any], arrays: Mapping[str, np.ndarray], leave_out: Sequence[str] = ()) -> Any:
        batch, _ = next(self.evaluator.batches(arrays, leave_out))
        shapes = jax.eval_shape(call, self.params, self.extra, batch)
        size = len(arrays["id"])
        return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), (size, *s.shape[1:])), shapes)


@dataclasses.dataclass
class _Raw:
    """The input itself in the place of features: flattened pixels."""

    evaluator: Evaluator

    def takes(self, evaluator: Evaluator, name: str) -> bool:
        """Whether the evaluation's data is images that are small enough."""
        evaluation = evaluator.evaluations[name]
        _, arrays = evaluator.split_arrays(evaluation, evaluation.test_split)
        return "image" in arrays and int(np.prod(arrays["image"].shape[1:])) <= RAW_LIMIT

    def features(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        scale = np.float32(255 if arrays["image"].dtype == np.uint8 else 1)
        flat = arrays["image"].reshape(len(arrays["image"]), -1).astype(np.float32) / scale
        return dict.fromkeys(self.evaluator.wanted, flat)  # it stands in for whichever feature is asked for


class _Reader:
    """See `ssljax.evals.base.Reader`."""

    def __init__(self, evaluator: Evaluator, name: str, evaluation: Evaluation, subject: Any):
        self.evaluator, self.evaluation, self.subject = evaluator, evaluation, subject
        self.path = f"evals.{name}"
        self.sizes: dict[str, int] = {}

    def arrays(self, split: str, whole: bool = False) -> dict[str, np.ndarray]:
        arrays = self._open(split, **({"max_examples": None} if whole else {}))[1]
        self.sizes[split] = len(arrays["id"])
        return arrays

    def example(self, split: str) -> dict[str, np.ndarray]:
        return self._open(split, max_examples=1)[1]

    def features(self, split: str, name: str) -> np.ndarray:
        found = self.subject.features(self._open(split)[0], self.arrays(split))
        key = f"{self.path}.{'feature' if hasattr(self.evaluation, 'feature') else 'type'}"
        if name not in found:
            raise UserError(f"{key}: the objective gives no {name!r} (it gives {', '.join(found)})")
        value = found[name]
        if value.ndim != 2:
            raise UserError(f"{key}: {name!r} has shape {value.shape}, must be one vector an example")
        if not np.isfinite(value).all():
            raise _NotFinite
        return value

    def labels(self, split: str) -> np.ndarray:
        arrays = self.arrays(split)
        if "label" not in arrays:
            source = self.evaluation.source or getattr(self.evaluator.data_config, "source", "the data")
            raise UserError(f"{self.path}.source: {source!r} has no 'label' in split {split!r}, which is needed")
        labels = np.asarray(arrays["label"])
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(f"{self.path}.source: labels of split {split!r} must be one class number >= 0 an example")
        return labels

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = self._learned(split)
        try:
            return self.subject.scores(self._open(split)[0], arrays)
        except NotImplementedError as error:
            raise UserError(f"{self.path}.type: {error}; choose an evaluation of features or loss") from error

    def bytes_per_token(self, split: str) -> float | None:
        arrays = self.arrays(split)
        total, tokens = getattr(arrays, "bytes", None), getattr(arrays, "tokens", None)
        return total / tokens if total and tokens else None

    def losses(self, split: str, batch_size: int) -> Metrics:
        arrays = {k: v for k, v in self._learned(split).items() if v.dtype != object}
        full = len(arrays["id"]) // batch_size
        if full == 0:
            raise UserError(
                f"{self.path}.batch_size: got {batch_size}, split {split!r} has {len(arrays['id'])} examples"
            )
        self.sizes[split] = full * batch_size
        starts = range(0, full * batch_size, batch_size)
        batches = (self.evaluator.put({k: v[i : i + batch_size] for k, v in arrays.items()}) for i in starts)
        return self.subject.losses(batches)

    def text_features(self, texts: Sequence[str], like: str) -> np.ndarray:
        if self.evaluator.tokenize is None:
            raise UserError(f"{self.path}.type: the data of this run has no tokenizer for the class names")
        tokens = self.evaluator.tokenize(list(texts))
        # The objective sees batches of one form: blank images stand beside the prompts.
        arrays = {"id": np.arange(len(texts))}
        for name, value in self.arrays(like).items():
            if name not in ("id", "label") and name not in tokens and value.dtype != object:
                arrays[name] = np.zeros((len(texts), *value.shape[1:]), value.dtype)
        arrays |= tokens
        found = self.subject.features(f"texts {digest(list(texts))}", arrays)
        if "text" not in found:
            raise UserError(f"{self.path}.type: the objective has no text embeddings")
        return found["text"]

    def class_names(self) -> Sequence[str]:
        return getattr(self.arrays(self.evaluation.test_split), "classes", None) or ()

    def _learned(self, split: str) -> dict[str, np.ndarray]:
        """The arrays of a split for an objective that may look at their labels."""
        classes = self.evaluator.objective.classes
        if classes is not None and (highest := int(self.labels(split).max())) >= classes:
            raise UserError(
                f"{self._key(split)}: split {split!r} has label {highest}, but the run learns {classes} "
                f"classes (labels 0 to {classes - 1})"
            )
        return self.arrays(split)

    def _open(self, split: str, **changed: Any) -> tuple[str, dict[str, np.ndarray]]:
        """(cache key, host arrays) of a split; what is wrong with it is told under the keys of the evaluation."""
        evaluation = dataclasses.replace(self.evaluation, **changed)
        try:
            return self.evaluator.split_arrays(evaluation, split)
        except UserError as error:
            elsewhere = evaluation.source is not None or getattr(self.evaluator.data_config, "source", None) is None
            own = [k for k in ("source", "keys", "where") if elsewhere or getattr(evaluation, k) is not None]
            message = str(error)
            for theirs, ours in [("split", self._key(split)), *((key, f"{self.path}.{key}") for key in own)]:
                if message.startswith(f"data.{theirs}"):
                    message = ours + message.removeprefix(f"data.{theirs}")
            raise UserError(message) from error

    def _key(self, split: str) -> str:
        """The key of the evaluation that names a split: "evals.knn.test_split"."""
        names = [field.name for field in dataclasses.fields(self.evaluation)]
        return ".".join([self.path, *[name for name in names if getattr(self.evaluation, name) == split][:1]])


def _no_loss(params: Any, extra: Any, batch: Any, step: Any) -> Mapping[str, Any]:
    raise ValueError("the `loss` evaluation needs a loss_fn")


def _fetch(tree: Any, rows: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[:rows], tree)
