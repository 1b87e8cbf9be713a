"""The inputs of one evaluation, from its subject and its splits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.evals.base import Evaluation, Metrics
from ssljax.evals.energy import corrupted, cosine_energies, error_energies
from ssljax.evals.splits import Splits
from ssljax.evals.subjects import Programs, Subject, selected


class NotFinite(Exception):
    """Raised if the features of a subject are not finite."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that an objective learns.

    Attributes:
        count: number of classes; None if the objective reads no labels.
        names: their names in the order of labels; empty if they have none.
    """

    count: int | None
    names: tuple[str, ...] = ()


class SubjectReader:
    """Implements `ssljax.evals.base.Reader`.

    Args:
        name: name of the evaluation in the config.
        evaluation: the evaluation.
        subject: the model or the control that is evaluated.
        programs: the functions of the objective.
        splits: the splits of the data.
        learned: the classes that the objective learns.
        tokenize: texts -> arrays; None without text.

    Attributes:
        sizes: split -> number of examples that were used.
        left_out: split -> number of examples that were left out, if any.
    """

    def __init__(
        self,
        name: str,
        evaluation: Evaluation,
        subject: Subject,
        programs: Programs,
        splits: Splits,
        learned: Classes,
        tokenize: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None,
    ):
        self.path, self.evaluation, self.subject = f"evals.{name}", evaluation, subject
        self.programs, self.splits, self.learned, self.tokenize = programs, splits, learned, tokenize
        self.sizes: dict[str, int] = {}
        self.left_out: dict[str, int] = {}

    def arrays(self, split: str, whole: bool = False) -> dict[str, np.ndarray]:
        arrays = self._open(split, **({"max_examples": None} if whole else {}))[1]
        self.sizes[split] = len(arrays["id"])
        return arrays

    def example(self, split: str) -> dict[str, np.ndarray]:
        return self._open(split, max_examples=1)[1]

    def features(self, split: str, name: str) -> np.ndarray:
        features = self.subject.features(self._open(split)[0], self.arrays(split))
        key = f"{self.path}.{'feature' if hasattr(self.evaluation, 'feature') else 'type'}"
        if name not in features:
            raise UserError(f"{key}: the objective gives no {name!r} (it gives: {', '.join(features)})")
        value = features[name]
        if value.ndim != 2 and "tokens" in self.arrays(split):  # a position of texts has no meaning of its own
            raise UserError(f"{key}: got {name!r} of shape {value.shape}, must be one vector per text")
        value = value.reshape(len(value), -1)
        if not np.isfinite(value).all():
            raise NotFinite
        return value

    def labels(self, split: str) -> np.ndarray:
        labels, fitted = self._labels(split), self.evaluation.fit_split
        if "fit_split" not in self.evaluation.separate_splits() or split == fitted:
            return labels
        names = getattr(self.arrays(fitted), "classes", None) or ()
        return self._renumbered(labels, split, names, f"fit_split {fitted!r}")

    def _labels(self, split: str) -> np.ndarray:
        """Returns the labels [N] of a split, as the source numbers them."""
        arrays = self.arrays(split)
        if "label" not in arrays:
            source = self.evaluation.source or self.splits.training_source or "the data"
            raise UserError(f"{self.path}.source: {source!r} has no 'label' in split {split!r}, which is required")
        labels = np.asarray(arrays["label"])
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(f"{self.path}.source: labels of split {split!r} must be one class number >= 0 per example")
        return labels

    def _renumbered(self, labels: np.ndarray, split: str, names: Sequence[str], owner: str) -> np.ndarray:
        """Returns labels of a split as numbers of classes `names`, to which they are matched by name.

        Labels of a source without names, and labels that are compared with classes without names, stay.

        Raises:
            UserError: an example has a class that is not in `names`.
        """
        own = tuple(getattr(self.arrays(split), "classes", None) or ())
        if not own or not names or own == tuple(names):
            return labels
        numbers = np.array([names.index(name) if name in names else -1 for name in own])
        found = numbers[labels]
        if (found < 0).any():
            unknown = own[labels[np.argmax(found < 0)]]
            raise UserError(
                f"{self._split_key(split)}: split {split!r} has the class {unknown!r}, which {owner} does not have "
                f"(it has: {', '.join(names)})"
            )
        return found.astype(labels.dtype)

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = self.arrays_for_objective(split)
        try:
            return self.subject.scores(self._open(split)[0], arrays)
        except NotImplementedError as error:
            raise UserError(f"{self.path}.type: {error}; choose an evaluation of features or loss") from error

    def energies(self, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        arrays, key = self.arrays_for_objective(split), f"{self._open(split)[0]} of seed {seed}"
        try:
            found = [self.subject.scores(self._open(split)[0], arrays)]
        except NotImplementedError:
            return self._feature_energies(split, seed)
        scored = None if self.programs.scores_pixels or "tokens" not in arrays else self.scored(split)
        wrong = corrupted(arrays, scored, self.learned.count, seed)
        found.append(self.subject.scores(f"{key}, incompatible", {**arrays, **wrong}))
        pair = [-np.float64(log_p) / np.maximum(count, 1) for log_p, count in found]
        return self._finite(pair[0], pair[1])

    def _feature_energies(self, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns energies of images and texts, of images and reconstructions, or of two views."""
        key, arrays = self._open(split)[0], self.arrays(split)
        features = self.subject.features(key, arrays)
        if "image" in features and "text" in features:
            return self._finite(*cosine_energies(features["image"], features["text"]))
        if "reconstruction" in features:
            return self._finite(*error_energies(features["pixels"], features["reconstruction"]))
        if not self.programs.has_views:
            raise UserError(
                f"{self.path}.type: the model reads {self.programs.objective.reads}, and the objective gives no "
                "log-probabilities; pairs of views are made of images and of texts only"
            )
        return self._finite(*cosine_energies(*self.subject.views(f"{key} of seed {seed}", arrays, seed)))

    def _finite(self, *energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not all(np.isfinite(x).all() for x in energies):
            raise NotFinite
        return energies[0], energies[1]

    def scored(self, split: str, whole: bool = False) -> np.ndarray:
        return self.programs.scored(self.arrays(split, whole), fit=whole)

    def bytes_per_token(self, split: str) -> float | None:
        arrays = self.arrays(split)
        lengths = getattr(arrays, "byte_lengths", None)
        if lengths is None or "tokens" not in arrays:
            return None
        scored = arrays["tokens"][self.scored(split)]
        return float(lengths[scored].sum(dtype=np.float64)) / max(len(scored), 1) or None

    def losses(self, split: str, batch_size: int) -> Metrics:
        arrays = {k: v for k, v in self.arrays_for_objective(split).items() if v.dtype != object}
        size = len(arrays["id"])
        if self.programs.objective.reads_other_rows:
            # The loss of a smaller batch is another quantity. Rows of one class often follow each other in a file, and
            # a batch of one class would be harder than the batches of training: rows are drawn.
            used = size // batch_size * batch_size
            if used == 0:
                raise UserError(
                    f"{self.path}.batch_size: got {batch_size}, must be at most the {size} examples of split {split!r}"
                )
            rows = np.random.default_rng(0).permutation(size)[:used]
            arrays = {k: selected(v, rows) for k, v in arrays.items()}
            self.sizes[split] = used
            if used < size:
                self.left_out[split] = size - used
        return self.subject.losses(self.programs.batches(arrays, batch_size=batch_size))

    def text_features(self, texts: Sequence[str], like: str) -> np.ndarray:
        if self.tokenize is None:
            raise UserError(f"{self.path}.type: the data of this run has no tokenizer, which class names need")
        tokens = self.tokenize(list(texts))
        # The objective expects batches of one form, so prompts come with blank images.
        arrays = {"id": np.arange(len(texts))}
        for name, value in self.arrays(like).items():
            if name not in ("id", "label") and name not in tokens and value.dtype != object:
                arrays[name] = np.zeros((len(texts), *value.shape[1:]), value.dtype)
        arrays |= tokens
        features = self.subject.features(f"texts {digest(list(texts))}", arrays)
        if "text" not in features:
            raise UserError(f"{self.path}.type: the objective has no text embeddings")
        return features["text"]

    def class_names(self) -> Sequence[str]:
        return getattr(self.arrays(self.evaluation.test_split), "classes", None) or ()

    def arrays_for_objective(self, split: str) -> dict[str, np.ndarray]:
        """Returns the arrays of a split for losses and scores of the objective, which may read labels.

        Raises:
            UserError: the objective learns labels, and the split has a label of no class.
        """
        arrays, count = self.arrays(split), self.learned.count
        if count is None:
            return arrays
        labels = self._renumbered(self._labels(split), split, self.learned.names, "the run")
        if (highest := int(labels.max())) >= count:
            raise UserError(
                f"{self._split_key(split)}: split {split!r} has label {highest}, but the run learns "
                f"{count} classes (labels 0 to {count - 1})"
            )
        return {**arrays, "label": labels}

    def _open(self, split: str, **changed: int | None) -> tuple[str, dict[str, np.ndarray]]:
        """Returns a cache key and the host arrays of a split.

        Raises:
            UserError: an error of the data; the message begins with the key of the evaluation that causes it.
        """
        evaluation = dataclasses.replace(self.evaluation, **changed)  # type: ignore[arg-type]
        try:
            return self.splits.open(evaluation, split)
        except UserError as error:
            other_source = evaluation.source is not None or self.splits.training_source is None
            own = [k for k in ("source", "keys", "where") if other_source or getattr(evaluation, k) is not None]
            renamed = {"data.split": self._split_key(split)} | {f"data.{key}": f"{self.path}.{key}" for key in own}
            message = str(error)
            for data_key, key in renamed.items():
                if message.startswith(data_key):
                    message = key + message.removeprefix(data_key)
            raise UserError(message) from error

    def _split_key(self, split: str) -> str:
        """Returns the key of the evaluation that names a split: "evals.knn.test_split"."""
        names = ["test_split", *(field.name for field in dataclasses.fields(self.evaluation))]
        return ".".join([self.path, *[name for name in names if getattr(self.evaluation, name) == split][:1]])
