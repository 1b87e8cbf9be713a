"""The contract of an evaluation: a frozen configuration that turns features, log-probabilities or losses into metrics.

An evaluation never sees a model. It asks a `Reader` for its inputs, so one evaluation runs unchanged on the trained
encoder and on the controls (the untrained encoder, the raw input). Inputs that several evaluations need are computed
once.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
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
        "k_means": "ssljax.evals.clusters:KMeans",
        "zero_shot": "ssljax.evals.matching:ZeroShot",
        "retrieval": "ssljax.evals.matching:Retrieval",
        "perplexity": "ssljax.evals.likelihood:Perplexity",
        "pseudo_perplexity": "ssljax.evals.likelihood:PseudoPerplexity",
        "reconstruction": "ssljax.evals.reconstruction:Reconstruction",
        "loss": "ssljax.evals.loss:HeldOutLoss",
        "energy": "ssljax.evals.energy:Energy",
    },
    has=("check", "run", "headline"),
)

Metrics = dict[str, float]
Direction = Literal["higher", "lower"]


class Reader(Protocol):
    """The inputs of an evaluation. `split` is the name of a split of its source.

    Attributes:
        path: config path of the evaluation, for messages: "evals.knn".
    """

    path: str

    def arrays(self, split: str, whole: bool = False) -> dict[str, np.ndarray]:
        """Returns the host arrays [N, ...] of a split; `whole` ignores `max_examples`."""

    def example(self, split: str) -> dict[str, np.ndarray]:
        """Returns the host arrays of one example of a split, without loading the split."""

    def features(self, split: str, name: str) -> np.ndarray:
        """Returns features [N, D] float32 of a split.

        Features of several vectors per image, [N, T, E], are laid side by side: D = T E.
        """

    def labels(self, split: str) -> np.ndarray:
        """Returns the class labels [N] of a split."""

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the log-probability [N] in nats and the number of scored tokens [N] of each example."""

    def energies(self, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the energies [N] of compatible and [N] of incompatible pairs; see `ssljax.evals.energy.Energy`."""

    def scored(self, split: str, whole: bool = False) -> np.ndarray:
        """Returns bool [N, T], the tokens of a split that `scores` counts; `whole`: that n-grams are fitted on."""

    def bytes_per_token(self, split: str) -> float | None:
        """Returns the UTF-8 bytes of text per token that `scores` counts, None without text."""

    def losses(self, split: str, batch_size: int) -> Metrics:
        """Returns the loss and metrics of the objective over a split, computed in batches of `batch_size`."""

    def text_features(self, texts: Sequence[str], like: str) -> np.ndarray:
        """Returns text embeddings [len(texts), D]. All other inputs are zeros in the shapes of the split `like`."""

    def class_names(self) -> Sequence[str]:
        """Returns the names of the classes, empty if the data has none."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The keys of every evaluation, and the methods that the harness calls."""

    source: str | None = setting(None, doc="URI of the data; None: the training source")
    fit_split: str = setting("train", doc="split on which heads, neighbours and n-grams are fitted")
    select_split: str | None = setting(
        None, doc="split on which hyper-parameters are selected, never the test split; None: a part of `fit_split`"
    )
    test_split: str = setting("test", doc="split on which metrics are measured")
    every_steps: int | None = setting(None, ge=1, doc="steps between evaluations during training; None: at the end")
    max_examples: int | None = setting(
        None, ge=1, doc="number of examples of a fixed random subset of each split; None: all"
    )
    keys: dict | None = setting(None, doc="column names of this source; None: as in the group `data`")
    where: dict | None = setting(None, doc="filter on the rows of this source; None: as in the group `data`")
    optional: bool = setting(
        False, doc="leave the evaluation out, with a line of the log, if the data lack what it reads, such as labels"
    )

    better: ClassVar[Direction] = "higher"  # of the headline metrics
    warning: ClassVar[str] = ""  # printed below the metrics
    on_raw_input: ClassVar[bool] = False  # True if flattened input can replace features

    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the features that the evaluation reads."""
        return ()

    def separate_splits(self) -> tuple[str, ...]:
        """Returns the keys of the splits that must not share rows: those that are fitted, selected and tested on."""
        return ()

    def headline(self) -> tuple[str, ...]:
        """Returns the metrics that a table shows first."""
        raise NotImplementedError

    def shown(self, metrics: Mapping[str, float]) -> Sequence[str]:
        """Returns the names of the metrics that a table shows, from the metrics of `run`."""
        return [name for name in self.headline() if name in metrics]

    def direction(self, metric: str) -> Direction | None:
        """Returns the better direction of a shown metric; None: neither is better, so it has no verdict."""
        return self.better

    def summary(self) -> str:
        """Returns the settings that are shown with the metrics, such as k, temperature or solver."""
        return ""

    def check(self, reader: Reader) -> Collection[str]:
        """Raises, before the first training step, the errors that `run` and `trivial` would raise after the last.

        Arrays and labels of `reader` are the real ones. Its features, scores and losses are zeros of the right shape
        and are not computed.

        Returns:
            The names of the metrics of `run`; empty if they are not known in advance.

        Raises:
            UserError: the data or the objective lacks a required input.
        """
        reader.example(self.test_split)
        for name in self.feature_names():
            reader.features(self.test_split, name)
        return ()

    def run(self, reader: Reader) -> Metrics:
        """Returns the metrics. Raises UserError if the data or the objective lacks a required input."""
        raise NotImplementedError

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        """Returns {control: metrics} of the controls that need no encoder (majority class, chance, n-grams)."""
        return {}


@dataclasses.dataclass(frozen=True)
class Probe(Evaluation):
    """An evaluation that predicts labels from frozen features: fitted on one split, tested on another."""

    feature: str = setting(
        "pooled",
        doc="name of the feature of the objective that is read; 'tokens' are the vectors of all patches of an image, "
        "side by side",
    )

    on_raw_input: ClassVar[bool] = True

    def validate(self) -> None:
        if self.fit_split == self.test_split:
            raise ValueError(f"test_split: got {self.test_split!r}, must differ from fit_split")
        if self.select_split == self.test_split:
            raise ValueError(f"select_split: got {self.select_split!r}, must differ from test_split")

    def feature_names(self) -> tuple[str, ...]:
        return (self.feature,)

    def headline(self) -> tuple[str, ...]:
        return ("accuracy",)

    def separate_splits(self) -> tuple[str, ...]:
        return ("fit_split", "select_split", "test_split")

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
    """A probe that can be restricted to a few random labels."""

    labels_per_class: int | None = setting(
        None, ge=1, doc="number of random labels of each class that are used; None: all labels"
    )
    draws: int = setting(1, ge=1, doc="repetitions with other random labels; mean and standard deviation are reported")
    seed: int = setting(0, doc="seed of the draws and of the solver")

    def validate(self) -> None:
        super().validate()
        if self.labels_per_class is None and self.draws > 1:
            raise ValueError(f"draws: got {self.draws}, must be 1 when labels_per_class is not set")

    def check(self, reader: Reader) -> Collection[str]:
        self.draw_rows(reader.labels(self.fit_split), np.random.default_rng(self.seed), reader.path)
        return super().check(reader)

    def label_summary(self) -> str:
        """Returns the end of the summary: the number of labels and draws, after a comma."""
        if self.labels_per_class is None:
            return ""
        labels, draws = (counted(n, noun) for n, noun in ((self.labels_per_class, "label"), (self.draws, "draw")))
        return f", {labels} a class, {draws}"

    def draw_rows(self, labels_N: np.ndarray, rng: np.random.Generator, path: str) -> np.ndarray:
        """Returns the indices of the examples of one draw."""
        if self.labels_per_class is None:
            return np.arange(len(labels_N))
        return draw_per_class(labels_N, self.labels_per_class, rng, f"{path}.labels_per_class")


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 label", "2 labels"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def majority(fit_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Returns the test accuracy of always predicting the most frequent class of the fitting labels."""
    values, counts = np.unique(fit_labels, return_counts=True)
    return float(np.mean(test_labels == values[counts.argmax()]))


def standardizer(x_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation [D] of features. A column that is constant up to rounding has scale 1."""
    x = x_NxD.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    return mean, np.where(std > 1e-6 * np.abs(mean), std, 1.0)


def draw_per_class(labels_N: np.ndarray, per_class: int, rng: np.random.Generator, path: str) -> np.ndarray:
    """Returns the sorted indices of `per_class` random examples of each class.

    Raises:
        UserError: a class has fewer examples; the message begins with `path`.
    """
    chosen = []
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        if len(members) < per_class:
            raise UserError(f"{path}: got {per_class}, must be at most the {len(members)} examples of class {label}")
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def mean_and_std(name: str, values: Sequence[float]) -> Metrics:
    """Returns the mean over draws and, for several draws, the standard deviation (n - 1) as `NAME_std`."""
    out = {name: float(np.mean(values))}
    if len(values) > 1:
        out[f"{name}_std"] = float(np.std(values, ddof=1))
    return out


def to_json(value: Any) -> float | None:
    """Returns a metric as a JSON value: a float, or None if it is not finite, since JSON has no NaN."""
    value = float(value)
    return value if np.isfinite(value) else None
