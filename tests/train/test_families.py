"""A train step of every family under its natural objective: eight devices equal one."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_objectives as tiny
from test_step import close, compare, first_moments, make_run

from ssljax import models

SMALL = {"preset": None, "width": 16, "depth": 2, "heads": 2}
IMAGE = {**SMALL, "patch_size": 4}
TEXT = {"vocab_size": 80}
CAUSAL = ("gpt", "gpt1", "gpt3", "imagegpt", "opt", "neox", "palm", "llama", "mistral", "mixtral")
CAUSAL += ("qwen2", "qwen3", "gemma", "gemma2", "qwen3_moe", "olmo2", "phi3")
MASKED = ("bert", "roberta", "distilbert", "albert", "electra", "deberta", "modernbert", "xlnet")
DENOISING = ("transformer", "t5", "bart", "pegasus", "switch")
RECURRENT = ("rnn",)
# family: (objective, keys of the model)
NATURAL = {
    **{name: ("causal_lm", {}) for name in CAUSAL},
    **{name: ("mlm", {}) for name in MASKED},
    **dict.fromkeys(DENOISING, ("span_corruption", TEXT)),
    "gemma3": ("causal_lm", {"depth": 6, "window": 4}),
    "smollm3": ("causal_lm", {"depth": 4}),
    "modernbert-decoder": ("causal_lm", {"depth": 3, "window": 4}),
    "vit": ("mae", {**IMAGE, "positions": "sincos"}),
    "deit": ("classification", IMAGE),
    "beit": ("classification", IMAGE),
    "ijepa": ("simclr", IMAGE),
    "dinov2": ("dino", IMAGE),
    "dinov3": ("dino", IMAGE),
    "ast": ("classification", {**IMAGE, "strides": [3, 3]}),
    "resnet": ("simclr", {"preset": None, "channels": 8, "depths": [1, 1], "groups": 4, "stem": "small"}),
    "rnn": ("causal_lm", {"width": 16}),
    "word_vectors": ("word2vec", {"width": 16}),
    "gin": ("graph_cl", {"width": 16, "depth": 2}),
    "clip": ("clip", tiny.CONFIGS["clip"]["model"]),
    "siglip": ("siglip", tiny.CONFIGS["siglip"]["model"]),
    "llava": ("captioning", tiny.CONFIGS["captioning"]["model"]),
}


def natural(name):
    """(objective, keys of the model) of a family."""
    objective, keys = NATURAL[name]
    transformer = objective in ("causal_lm", "mlm", "span_corruption") and name not in RECURRENT
    keys = {**(SMALL if transformer else {}), **keys, "name": name}
    return objective, keys | ({"depth": 3} if name == "modernbert" else {})


# The others follow under `-m full`.
FIRST = ("mixtral",)
CASES = [pytest.param(name, marks=() if name in FIRST else pytest.mark.full) for name in models.REGISTRY]


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_eight_devices(name, monkeypatch):
    objective, keys = natural(name)
    if name == "ast":
        sound_in_the_place_of_images(monkeypatch)
    if name in ("mixtral", "switch", "qwen3_moe"):
        keys["experts"] = {"count": 4, "top_k": 1 if name == "switch" else 2, "every": 1 if name == "mixtral" else 2}
    if name == "qwen3_moe":
        keys["experts"] |= {"mlp_dim": 8, "place": 0}
    one, state = make_run(objective, model=keys)[0](2)
    many, sharded = make_run(objective, (2, 2, 2), model=keys)[0](2)
    assert all(np.isfinite(value) for line in one for value in line.values())
    close(first_moments(sharded), first_moments(state), 1e-3, "first moment")
    compare(many, one)
    assert not all(x.sharding.is_fully_replicated for x in jax.tree.leaves(sharded.params)), "nothing is split"


def sound_in_the_place_of_images(monkeypatch):
    elements = {"spectrogram": {"shape": [24, 16], "dtype": "float32"}, "label": tiny.SPEC.elements["label"]}
    monkeypatch.setattr(tiny, "SPEC", dataclasses.replace(tiny.SPEC, elements=elements))
    shape = (tiny.BATCH, 24, 16)

    def batch(seed=0):
        key, labels = jax.random.split(jax.random.key(seed))
        return {
            "spectrogram": jax.random.normal(key, shape),
            "label": jax.random.randint(labels, shape[:1], 0, 5),
        }

    monkeypatch.setattr(tiny, "batch", batch)


def test_every_family_has_an_objective():
    assert set(NATURAL) == set(models.REGISTRY)
