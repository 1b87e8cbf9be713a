"""The harness: runs all evaluations of a config on a model and on its controls."""

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.evals.base import REGISTRY, Evaluation, Metrics, to_json
from ssljax.evals.held_out import LossFn
from ssljax.evals.reader import Classes, NotFinite, SubjectReader
from ssljax.evals.splits import Load, Splits
from ssljax.evals.subjects import Model, ModelShapes, Programs, RawInput, Subject

# Largest number of values of a raw input (a 74 x 74 colour image). A split of larger inputs, flattened, would fill the
# memory.
RAW_LIMIT = 16_384

log = logging.getLogger(__name__)


def build(config_evals: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Builds the evaluations of the config group `evals`: `{name: {type, source, fit_split, ...}}`.

    `type` names the registry entry; its default is the name of the evaluation.

    Raises:
        UserError: unknown type or key, wrong type, or impossible value; the message names `evals.<name>.<key>`.
    """
    out = {}
    for name, values in config_evals.items():
        path = f"evals.{name}"
        if not re.fullmatch(r"[^./\\\s][^/\\\n]*", name):  # `/` separates the name and a metric in files
            raise UserError(f"evals: got the name {name!r}, must be without / and \\ and not begin with a dot")
        if not isinstance(values, Mapping):
            raise UserError(f"{path}: got {values!r}, must be a group of keys")
        kind = values.get("type", name)
        own = {k: v for k, v in values.items() if k != "type"}
        evaluation = schema.build(REGISTRY.get(kind, f"{path}.type"), own, path)
        object.__setattr__(evaluation, "_registry_name", kind)
        out[name] = evaluation
    return out


def settings(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the complete config group of an evaluation, with defaults."""
    values = schema.to_dict(evaluation)
    return {"type": values.pop("name", type(evaluation).__name__), **values}


class Evaluator:
    """The evaluations of a run.

    Features and scores come from two functions, each compiled once. Labels are hidden from the objective when it
    computes features. Host arrays of splits are kept between calls.

    Args:
        objective: see `ssljax.objectives.base`; its `prepare`, `features`, `score` and `classes` are used.
        config_evals: the config group `evals`.
        data_config: the `data` group of the run; an evaluation may name another source.
        put: host batch -> device batch (sharded over the mesh).
        batch_size: rows of a batch, a multiple of the number of devices that share it.
        loss_fn: the loss of a batch (`ssljax.evals.held_out.held_out_loss`). Required by `loss`.
        tokenize: texts -> {"tokens": [n, T], ...} in the form of the data. Required by `zero_shot`.
        classes: names of the classes that the objective learns, in the order of its labels; None: without names.
        load: (data_config, split, source=, keys=, where=, max_examples=) -> {key: array}, with the key "id" and,
            optionally, the attributes `byte_lengths` (for bits per byte) and `classes` (names). None =
            `ssljax.data.load_split`.
    """

    def __init__(
        self,
        objective: Any,
        config_evals: Mapping[str, Any],
        data_config: Any,
        put: Callable[[Any], Any],
        batch_size: int = 256,
        *,
        loss_fn: LossFn | None = None,
        tokenize: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None,
        classes: Sequence[str] | None = None,
        load: Load | None = None,
    ):
        self.evaluations = build(config_evals)
        self.objective, self.tokenize = objective, tokenize
        feature_names = {name for e in self.evaluations.values() for name in e.feature_names()} | {"pooled"}
        self.programs = Programs(objective, feature_names, put, batch_size, loss_fn)
        self.splits = Splits(data_config, load)
        self.class_names = tuple(classes or ())
        self._sizes: dict[str, dict[str, int]] = {}
        self._left_out: dict[str, dict[str, int]] = {}
        self._warnings: dict[str, str] = {}

    def check(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, Collection[str]]:
        """Raises the errors of `run` and `controls` before training; `params` and `extra` may be shapes.

        Evaluations with errors that are `optional` are left out from now on, with a line of the log.

        Returns:
            {evaluation: names of its metrics}, empty if they are not known in advance.

        Raises:
            UserError: as `run` and `controls`.
        """
        shapes, found = ModelShapes(self.programs, params, extra), {}
        for name in self._selected(names):
            try:
                found[name] = self.evaluations[name].check(self._reader(name, shapes))
                self._check_splits(name)
            except UserError as error:
                if not self.evaluations[name].optional:
                    raise
                log.warning("left out: %s", error)
                del self.evaluations[name]
        return found

    def _check_splits(self, name: str) -> None:
        """Raises UserError if an evaluation would be tested on rows that it is fitted on; notes rows of training."""
        evaluation = self.evaluations[name]
        keys = [key for key in evaluation.separate_splits() if getattr(evaluation, key) is not None]
        for a, b in itertools.combinations(keys, 2):
            first, second = getattr(evaluation, a), getattr(evaluation, b)
            if shared := self.splits.shared(evaluation, first, second):
                raise UserError(f"evals.{name}.{b}: {second!r} shares {shared} rows with {a} {first!r} (none allowed)")
        test = evaluation.test_split
        if rows := self.splits.trained_on(evaluation, test):
            self._warnings[name] = f"{rows:,} rows of test_split {test!r} are rows of the training split"

    def run(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, Metrics]:
        """Returns {evaluation: {metric: value}} of a model; headline metrics are NaN if its features are not finite.

        Args:
            params, extra: the variables of the objective.
            names: the evaluations to run; None = all.

        Raises:
            UserError: unknown name, or the data or the objective lacks a required input.
        """
        return self._run(Model(self.programs, params, extra), self._selected(names))

    def controls(self, params: Any, extra: Any, names: Sequence[str] | None = None) -> dict[str, dict[str, Metrics]]:
        """Returns {control: {evaluation: {metric: value}}}.

        The controls are "untrained" (the model with the given initial `params` and `extra`), "raw" (flattened input
        instead of features), and those that need no encoder ("majority", "chance", "unigram", "bigram").
        """
        selected = self._selected(names)
        untrained = Model(self.programs, params, extra)
        out = {"untrained": self._run(untrained, selected)}
        out["raw"] = self._run(RawInput(self.programs), [name for name in selected if self._takes_raw_input(name)])
        for name in selected:
            for control, metrics in self.evaluations[name].trivial(self._reader(name, untrained)).items():
                out.setdefault(control, {})[name] = metrics
        return {control: results for control, results in out.items() if results}

    def records(
        self, step: int, results: Mapping[str, Mapping[str, float]], of: str = "trained"
    ) -> list[dict[str, Any]]:
        """Returns the lines of evals.jsonl, one for each evaluation, as JSON values.

        The keys of a line are step, eval, type, of ("trained" or a control), summary, better, headline (the metrics
        that a table shows), metrics, settings (the keys of the evaluation), sizes (examples of each split), and, if
        there are any, directions (of the shown metrics that differ from `better`; null: no direction), left_out
        (examples of each split that were not used) and warning.
        """
        return [self._record(int(step), name, metrics, of) for name, metrics in results.items()]

    def _record(self, step: int, name: str, metrics: Mapping[str, float], of: str) -> dict[str, Any]:
        evaluation = self.evaluations[name]
        own, shown = settings(evaluation), list(evaluation.shown(metrics))
        directions = {m: evaluation.direction(m) for m in shown if evaluation.direction(m) != evaluation.better}
        line = {
            "step": step,
            "eval": name,
            "type": own.pop("type"),
            "of": of,
            "summary": evaluation.summary(),
            "better": evaluation.better,
            "headline": shown,
            "metrics": {metric: to_json(value) for metric, value in metrics.items()},
            "settings": {k: v for k, v in own.items() if v not in (None, [], {}) and k != "every_steps"},
            "sizes": dict(self._sizes.get(name, {})),
        }
        warning = "; ".join(filter(None, (evaluation.warning, self._warnings.get(name))))
        more = {"directions": directions, "left_out": self._left_out.get(name), "warning": warning}
        return line | {key: value for key, value in more.items() if value}

    def embedding(self, params: Any, extra: Any, name: str, *, max_examples: int = 2000) -> dict[str, np.ndarray]:
        """Returns the arrays of the report's figure of features, from the test split of the evaluation `name`.

        Returns:
            "features" [N, D], and "label" [N] and "images" if the data has them; empty if features are not finite.
        """
        evaluation = dataclasses.replace(self.evaluations[name], max_examples=max_examples)
        reader = self._reader(name, Model(self.programs, params, extra), evaluation)
        arrays = reader.arrays(evaluation.test_split)
        try:
            out = {"features": reader.features(evaluation.test_split, evaluation.feature_names()[0])}
        except NotFinite:
            return {}
        return out | {new: arrays[key] for key, new in (("label", "label"), ("image", "images")) if key in arrays}

    def examples(self, count: int) -> dict[str, np.ndarray] | None:
        """Returns up to `count` held-out rows of the kind that the objective reads; None: no evaluation has such rows.

        They are a fixed random subset of the first test split that has them.
        """
        found = self._held_out(count)
        return None if found is None else found[1]

    def predictions(self, params: Any, extra: Any, max_examples: int = 2000) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the labels [N] and the predicted classes [N] of held-out rows; None: the objective has no classes."""
        found = None if self.objective.classes is None else self._held_out(max_examples)
        if found is None:
            return None
        key, arrays = found
        return arrays["label"], Model(self.programs, params, extra).predicted(key, arrays)

    def _held_out(self, count: int) -> tuple[str, dict[str, np.ndarray]] | None:
        """Returns a name and the arrays of the rows of `examples`, with labels as the objective numbers them."""
        elements = {key: tuple(e["shape"]) for key, e in self.objective.spec.elements.items() if key != "label"}
        for name, evaluation in self.evaluations.items():
            reader = self._reader(name, Subject(), dataclasses.replace(evaluation, max_examples=count))
            try:
                arrays = reader.arrays_for_objective(evaluation.test_split)
            except UserError:  # labels that the objective does not know, for example
                continue
            if all(key in arrays and arrays[key].shape[1:] == shape for key, shape in elements.items()):
                return name, arrays
        return None

    def _selected(self, names: Sequence[str] | None) -> list[str]:
        for name in names or ():
            if name not in self.evaluations:
                hint = nearest(name, self.evaluations)
                allowed = ", ".join(self.evaluations) or "none"
                raise UserError(f"evals: unknown evaluation {name!r}{hint} (in this config: {allowed})")
        return list(self.evaluations if names is None else names)

    def _run(self, subject: Subject, names: Sequence[str]) -> dict[str, Metrics]:
        out = {}
        for name in names:
            reader = self._reader(name, subject)
            try:
                out[name] = self.evaluations[name].run(reader)
            except NotFinite:  # training continues after a diverged evaluation, and the table shows it
                out[name] = dict.fromkeys(self.evaluations[name].headline(), float("nan"))
            self._sizes.setdefault(name, {}).update(reader.sizes)
            self._left_out[name] = reader.left_out
        return out

    def _reader(self, name: str, subject: Subject, evaluation: Evaluation | None = None) -> SubjectReader:
        evaluation, learned = evaluation or self.evaluations[name], Classes(self.objective.classes, self.class_names)
        return SubjectReader(name, evaluation, subject, self.programs, self.splits, learned, self.tokenize)

    def _takes_raw_input(self, name: str) -> bool:
        """Returns True if an evaluation can run on raw input: graphs, sounds, or images that are small enough."""
        evaluation = self.evaluations[name]
        if not evaluation.on_raw_input:
            return False
        _, arrays = self.splits.open(evaluation, evaluation.test_split)
        if "audio" in arrays:
            return self.objective.reads == "spectrograms"
        return "nodes" in arrays or ("image" in arrays and int(np.prod(arrays["image"].shape[1:])) <= RAW_LIMIT)
