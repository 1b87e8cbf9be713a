"""Matching of images and texts: zero-shot classification and retrieval. Ties count against the model."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.evals.base import Evaluation, Metrics, Reader, majority

# Similarities within this distance count as equal, since equal inputs may differ by rounding.
TIE = 1e-6


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluation):
    """Classification of images by the nearest class description (Radford et al. 2021, section 3.1)."""

    templates: tuple[str, ...] = setting(
        ("{}",), doc="prompts with one `{}` for the class name; their normalised embeddings are averaged"
    )
    classes: tuple[str, ...] = setting((), doc="class names in the order of labels; empty: the names of the data")

    def validate(self) -> None:
        for i, template in enumerate(self.templates):
            if template.count("{}") != 1:
                raise ValueError(f"templates[{i}]: got {template!r}, must contain {{}} once, for the class name")
        if not self.templates:
            raise ValueError("templates: got an empty list, must have at least one prompt")

    def feature_names(self) -> tuple[str, ...]:
        return ("image", "text")

    def headline(self) -> tuple[str, ...]:
        return ("accuracy",)

    def summary(self) -> str:
        return f"{len(self.templates)} prompt{'s' * (len(self.templates) > 1)} a class"

    def check(self, reader: Reader) -> Collection[str]:
        self._texts(reader)
        super().check(reader)
        return ("accuracy", "accuracy_top5")

    def run(self, reader: Reader) -> Metrics:
        text_CxTxD, labels = self._texts(reader), reader.labels(self.test_split)
        rank = zero_shot_rank(reader.features(self.test_split, "image"), text_CxTxD, labels)
        return {"accuracy": float(np.mean(rank < 1)), "accuracy_top5": float(np.mean(rank < 5))}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        classes, labels = len(self._names(reader)), reader.labels(self.test_split)
        return {
            "chance": {"accuracy": 1 / classes, "accuracy_top5": min(1.0, 5 / classes)},
            "majority": {"accuracy": majority(labels, labels)},
        }

    def _texts(self, reader: Reader) -> np.ndarray:
        """Returns the embeddings [C, T, D] of T prompts for each of C classes."""
        names = self._names(reader)
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        return reader.text_features(prompts, self.test_split).reshape(len(names), len(self.templates), -1)

    def _names(self, reader: Reader) -> tuple[str, ...]:
        names = self.classes or tuple(reader.class_names())
        if not names:
            raise UserError(f"{reader.path}.classes: missing; the data has no class names")
        highest = int(reader.labels(self.test_split).max())
        if highest >= len(names):
            raise UserError(
                f"{reader.path}.classes: got {len(names)} names, must be at least {highest + 1} (largest label + 1)"
            )
        return names


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluation):
    """Recall at k over the pairs of the test split, in both directions. Image i and text i are a pair."""

    ks: tuple[int, ...] = setting((1, 5, 10), ge=1, doc="ranks k at which the recall is reported")

    directions: ClassVar[tuple[str, str]] = ("image_to_text", "text_to_image")

    def feature_names(self) -> tuple[str, ...]:
        return ("image", "text")

    def headline(self) -> tuple[str, ...]:
        return tuple(f"{direction}_r{k}" for direction in self.directions for k in self.ks)

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        names = [f"{d}_r{k}" for d in self.directions for k in self.ks]
        return [*names, *(f"{d}_median_rank" for d in self.directions)]

    def run(self, reader: Reader) -> Metrics:
        image, text = (reader.features(self.test_split, name) for name in ("image", "text"))
        ranks = dict(zip(self.directions, (retrieval_rank(image, text), retrieval_rank(text, image))))
        metrics = {f"{d}_r{k}": float(np.mean(rank < k)) for d, rank in ranks.items() for k in self.ks}
        return metrics | {f"{d}_median_rank": float(np.median(rank) + 1) for d, rank in ranks.items()}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        size = len(reader.features(self.test_split, "image"))
        return {"chance": {f"{d}_r{k}": min(1.0, k / size) for d in self.directions for k in self.ks}}


def retrieval_rank(query_NxD: np.ndarray, key_NxD: np.ndarray, *, block: int = 1024) -> np.ndarray:
    """Returns the rank [N] (0 = first) of key i among all keys for query i, by cosine similarity.

    Ties count against the model: an equally similar key, such as a duplicate, is ranked before the true one.
    """
    query, key = _normalize(query_NxD), _normalize(key_NxD)
    ranks = []
    for start in range(0, len(query), block):
        similarity = query[start : start + block] @ key.T
        rows = np.arange(len(similarity))
        true = similarity[rows, start + rows]
        ranks.append(np.sum(similarity >= true[:, None] - TIE, axis=1) - 1)
    return np.concatenate(ranks)


def zero_shot_rank(image_NxD: np.ndarray, text_CxTxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Returns the rank [N] (0 = first) of the true class, after all ties. T templates of a class are averaged."""
    similarity_NxC = _normalize(image_NxD) @ _normalize(_normalize(text_CxTxD).mean(axis=1)).T
    true = similarity_NxC[np.arange(len(labels_N)), labels_N]
    return np.sum(similarity_NxC >= true[:, None] - TIE, axis=1) - 1


def _normalize(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
