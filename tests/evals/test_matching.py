"""Retrieval and zero-shot classification against loops; ties and duplicates count against the model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssljax.evals.matching import Retrieval, ZeroShot, retrieval_rank, zero_shot_rank


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@given(st.integers(1, 12), st.integers(0, 10_000))
def test_retrieval_rank_by_definition(n, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(n, 5)), rng.normal(size=(n, 5))
    expected = [sum(cosine(q[i], k[j]) > cosine(q[i], k[i]) for j in range(n)) for i in range(n)]
    np.testing.assert_array_equal(retrieval_rank(q, k, block=4), expected)


def test_ties_count_against_the_model():
    q = np.eye(4, dtype=np.float32)
    keys = q.copy()
    keys[1] = keys[0]  # two images with equal captions: the model cannot distinguish them
    np.testing.assert_array_equal(retrieval_rank(q, keys), [1, 3, 0, 0])
    collapsed = np.ones((6, 3), np.float32) * np.linspace(0.3, 7, 6, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(retrieval_rank(collapsed, collapsed), 5)  # a collapsed model has the last rank


def test_zero_shot_averages_templates_and_counts_ties_against():
    rng = np.random.default_rng(0)
    image, text, labels = rng.normal(size=(20, 5)), rng.normal(size=(3, 2, 5)), rng.integers(3, size=20)
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    classes = [unit((unit(t[0]) + unit(t[1])) / 2) for t in text]
    for i, rank in enumerate(zero_shot_rank(image, text, labels)):
        own = cosine(image[i], classes[labels[i]])
        assert rank == sum(cosine(image[i], c) > own for c in classes)
    assert (zero_shot_rank(image, np.ones((3, 1, 5)), labels) == 2).all()


class Reader:
    path = "evals.x"

    def __init__(self, image, text, labels=None):
        self.image, self.text, self.label = image, text, labels

    def features(self, split, name):
        return {"image": self.image, "text": self.text}[name]

    def labels(self, split):
        return self.label

    def text_features(self, texts, like):
        self.texts = texts
        return self.text

    def class_names(self):
        return ("cat", "dog")


def test_retrieval_and_its_chance_level():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 64))
    result = Retrieval().run(Reader(image, image + 0.01 * rng.normal(size=image.shape)))
    assert all(result[name] == 1 for name in Retrieval().headline())
    reader = Reader(image, rng.normal(size=image.shape))
    chance = Retrieval(ks=(20, 1000)).trivial(reader)["chance"]
    assert chance["image_to_text_r20"] == 0.1 and chance["text_to_image_r1000"] == 1
    assert Retrieval(ks=(20,)).run(reader)["image_to_text_r20"] == pytest.approx(0.1, abs=0.06)


def test_zero_shot_prompts_are_in_class_order():
    image = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    text = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
    reader = Reader(image, text, np.array([0, 1, 0]))
    evaluation = ZeroShot(templates=("a {}.", "{}!"))
    assert evaluation.run(reader)["accuracy"] == pytest.approx(2 / 3)
    assert reader.texts == ["a cat.", "cat!", "a dog.", "dog!"]
    assert evaluation.trivial(reader)["chance"]["accuracy"] == 0.5
    with pytest.raises(ValueError, match=r"templates\[0\]: got 'x'"):
        ZeroShot(templates=("x",)).validate()
