"""What an evaluation is: a frozen configuration that turns features, log-probabilities or losses into numbers.

An evaluation never sees a model. It asks a `Reader` for what it needs, so the same evaluation runs unchanged on the
trained encoder, on the untrained one and on raw input (the controls), and whatever two evaluations share is
computed once.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting

REGISTRY = Registry(
    "evaluation",
    {
        "knn": "ssljax.evals.knn:Knn",
        "linear": "ssljax.evals.linear:Linear",
        "few_shot": "ssljax.evals.few_shot:FewShot",
        "zero_shot": "ssljax.evals.matching:ZeroShot",
        "retrieval": "ssljax.evals.matching:Retrieval",
        "perplexity": "ssljax.evals.likelihood:Perplexity",
        "pseudo_perplexity": "ssljax.evals.likelihood:PseudoPerplexity",
        "loss": "ssljax.evals.loss:HeldOutLoss",
    },
)

Metrics = dict[str, float]


class Reader(Protocol):
    """What an evaluation may ask for. `split` is a split of the evaluation's source."""

    path: str  # the config path of the evaluation, for messages: "evals.knn"

    def arrays(self, split: str, whole: bool = False) -> dict[str, np.ndarray]:
        """The host arrays of a split, leading axis = example; `whole` = without regard to `max_examples`."""

    def example(self, split: str) -> dict[str, np.ndarray]:
        """The host arrays of one example of a split: what can be looked at without loading them all."""

    def features(self, split: str, name: str) -> np.ndarray:
        """Features [N, D] float32 of a split."""

    def labels(self, split: str) -> np.ndarray:
        """Class labels [N] of a split."""

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability [N] in nats and number of scored tokens [N] of each example."""

    def bytes_per_token(self, split: str) -> float | None:
        """UTF-8 bytes of text per token of a split, None where there is no text."""

    def losses(self, split: str, batch_size: int) -> Metrics:
        """The objective's metrics, averaged over full batches of `batch_size`."""

    def text_features(self, texts: Sequence[str], like: str) -> np.ndarray:
        """Text embeddings [len(texts), D]; `like` is the split whose arrays the other inputs imitate."""

    def class_names(self) -> Sequence[str]:
        """The names of the classes, empty where the data has none."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The keys that every evaluation has, and what the harness asks of it.

    Attributes:
        source: URI of the data; None = the source the run trains on.
        fit_split: what heads, neighbours and n-grams are fitted on.
        select_split: where hyper-parameters are chosen; None = carved from `fit_split`. Never the test split.
        test_split: what the numbers are measured on.
        every_steps: run during training each so many steps; None = only at the end.
        max_examples: a fixed random subset of each split; None = all.
        keys, where: column names and row filter of this source; None = those of the `data` group.
    """

    source: str | None = setting(None)
    fit_split: str = setting("train")
    select_split: str | None = setting(None)
    test_split: str = setting("test")
    every_steps: int | None = setting(None, ge=1)
    max_examples: int | None = setting(None, ge=1)
    keys: dict | None = setting(None)
    where: dict | None = setting(None)

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    warning: ClassVar[str] = ""  # printed with the numbers
    on_raw_input: ClassVar[bool] = False  # whether flattened input can take the place of features

    def wanted(self) -> tuple[str, ...]:
        """The names of the features that it reads."""
        return ()

    def headline(self) -> tuple[str, ...]:
        """The metrics that a table shows first."""
        raise NotImplementedError

    def summary(self) -> str:
        """The settings that belong beside every number: k, temperature, solver."""
        return ""

    def check(self, reader: Reader) -> Collection[str]:
        """Told before the first step of training: what `run` and `trivial` could complain of after the last.

        The arrays and labels of `reader` are those that `run` will see. Its features, scores and losses are zeros of
        the right shape, for which nothing was computed.

        Returns:
            The names of the metrics that `run` will give; none where they are not known before it.

        Raises:
            UserError: the data or the objective lacks what is needed.
        """
        reader.example(self.test_split)
        for name in self.wanted():
            reader.features(self.test_split, name)
        return ()

    def run(self, reader: Reader) -> Metrics:
        """Measure. Raises UserError where the data or the objective lacks what is needed."""
        raise NotImplementedError

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        """Controls that need no encoder (majority class, chance, n-grams): {control: metrics}."""
        return {}


@dataclasses.dataclass(frozen=True)
class Probe(Evaluation):
    """An evaluation that predicts labels from frozen features: fitted on one split, measured on another.

    Attributes:
        feature: which of the objective's features to read.
    """

    feature: str = setting("pooled")

    on_raw_input: ClassVar[bool] = True

    def validate(self) -> None:
        if self.fit_split == self.test_split:
            raise ValueError(f"test_split: got {self.test_split!r}, must differ from fit_split")
        if self.select_split == self.test_split:
            raise ValueError(f"select_split: got {self.select_split!r}, must differ from test_split")

    def wanted(self) -> tuple[str, ...]:
        return (self.feature,)

    def headline(self) -> tuple[str, ...]:
        return ("accuracy",)

    def check(self, reader: Reader) -> Collection[str]:
        for split in filter(None, (self.fit_split, self.select_split, self.test_split)):
            reader.labels(split)
            reader.features(split, self.feature)
        return ()

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        accuracy = majority(reader.labels(self.fit_split), reader.labels(self.test_split))
        return {"majority": dict.fromkeys(self.headline(), accuracy)}


@dataclasses.dataclass(frozen=True)
class DrawnProbe(Probe):
    """A probe that can be told to see few labels.

    Attributes:
        labels_per_class: so many random labels a class, and no others; None = all labels.
        draws: repetitions with other random labels; the mean and the standard deviation are reported.
        seed: of the draws and of whatever else is random.
    """

    labels_per_class: int | None = setting(None, ge=1)
    draws: int = setting(1, ge=1)
    seed: int = setting(0)

    def validate(self) -> None:
        super().validate()
        if self.labels_per_class is None and self.draws > 1:
            raise ValueError(f"draws: got {self.draws}, must be 1 when labels_per_class is not set")

    def check(self, reader: Reader) -> Collection[str]:
        self.rows(reader.labels(self.fit_split), np.random.default_rng(self.seed), reader.path)
        return super().check(reader)

    def budget(self) -> str:
        """What the summary says of the labels, after a comma."""
        return "" if self.labels_per_class is None else f", {self.labels_per_class} labels a class, {self.draws} draws"

    def rows(self, labels_N: np.ndarray, rng: np.random.Generator, path: str) -> np.ndarray:
        """Indices of the examples that one draw may use."""
        if self.labels_per_class is None:
            return np.arange(len(labels_N))
        return draw_per_class(labels_N, self.labels_per_class, rng, f"{path}.labels_per_class")


def majority(fit_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy on the test labels of always answering the most frequent class of the fitting labels."""
    values, counts = np.unique(fit_labels, return_counts=True)
    return float(np.mean(test_labels == values[counts.argmax()]))


def standardizer(x_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale [D] of features; a column that varies by rounding only keeps the scale 1."""
    x = x_NxD.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    return mean, np.where(std > 1e-6 * np.abs(mean), std, 1.0)


def draw_per_class(labels_N: np.ndarray, per_class: int, rng: np.random.Generator, path: str) -> np.ndarray:
    """Sorted indices of `per_class` random examples of each class.

    Raises:
        UserError: a class has fewer; `path` is the key to blame.
    """
    chosen = []
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        if len(members) < per_class:
            raise UserError(f"{path}: got {per_class}, but class {label} has {len(members)} examples to draw from")
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def mean_and_std(name: str, values: Sequence[float]) -> Metrics:
    """Mean over draws, and their standard deviation (n - 1) where there are several."""
    out = {name: float(np.mean(values))}
    if len(values) > 1:
        out[f"{name}_std"] = float(np.std(values, ddof=1))
    return out


def plain(value: Any) -> Any:
    """A metric as a JSON value: a float, or None where it isn't finite (JSON has no NaN)."""
    value = float(value)
    return value if np.isfinite(value) else None
