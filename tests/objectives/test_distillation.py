"""Distillation: the loss by its definition, and the teacher, which is read from a run, frozen and kept."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax, softmax
from tiny_runs import LM

from ssljax import objectives, run
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of
from ssljax.runs.trained import read_trained
from ssljax.train.loop import Stopped

KEY = jax.random.key(11)


def made(**settings):
    objective = dataclasses.replace(tiny.make("distillation").unwrapped, mixup=0.0, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # classifiers begin as zeros
    moved = lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)  # noqa: E731
    params, extra = jax.tree.map(moved, (params, extra))
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.9), (1.0, 0.3)])
def test_loss_by_its_definition(temperature, weight):
    objective, params, extra, inputs, ctx = made(temperature=temperature, weight=weight, label_smoothing=0.0)
    pixels = objective.pixels(inputs["image"])
    teacher = objective.teacher_model.module(tiny.SPEC)
    assert jax.tree.leaves(extra["teacher"]["encoder"]["stack"]["layers"])[0].shape[0] == 1  # one block

    def logits(module, part):
        pooled = np.asarray(apply(module, part["encoder"], pixels).pooled, np.float64)
        return pooled @ np.asarray(part["head"]["linear"]["kernel"]) + np.asarray(part["head"]["linear"]["bias"])

    student, taught = logits(objective.model, params), logits(teacher, extra["teacher"])
    hard = [-log_softmax(row)[label] for row, label in zip(student, np.asarray(inputs["target"]).argmax(1))]
    soft = []
    for s, t in zip(student, taught):
        p = softmax(t / temperature)
        soft.append(temperature**2 * (p * (np.log(p) - log_softmax(s / temperature))).sum())
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    for name, scale, values in (("cross_entropy", 1 - weight, hard), ("distillation", weight, soft)):
        coefficient, total, count = found.terms[name]
        assert coefficient == pytest.approx(scale) and count == tiny.BATCH
        np.testing.assert_allclose(total / count, np.mean(values), rtol=1e-4)
    equal, count = found.metrics["agreement"]
    assert equal == (student.argmax(1) == taught.argmax(1)).sum() and count == tiny.BATCH


def test_the_teacher_is_frozen():
    objective, params, extra, inputs, ctx = made()

    def value(teacher):
        outputs = objective.encode(params, {"teacher": teacher}, inputs, ctx)
        return objective.loss(params, extra, outputs, inputs, ctx).terms["distillation"][1]

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(value)(extra["teacher"])))
    assert objective.update(extra, params, (), (), jnp.int32(0)) is extra


BASE = {**LM, "data": {"source": "builtin:digits", "max_examples": 200}, "steps": 4, "checkpoint": {"every_steps": 2}}
SMALL = {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4}
LARGE = {**SMALL, "width": 24, "depth": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run.train({**BASE, "model": LARGE, "objective": {"name": "classification"}}, folder)
    return folder


def config(teacher, **settings):
    objective = {"name": "distillation", "teacher_from": str(teacher), "teacher_model": LARGE, **settings}
    return {**BASE, "model": SMALL, "objective": objective}


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_teacher_comes_from_the_run_and_stays(teacher, tmp_path):
    """It is in the checkpoints: the run goes on, and is read, when the folder of the teacher is gone."""
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    expected = read_trained(teacher).params
    whole = run.train(config(copy), tmp_path / "whole")
    equal(whole.state.extra["teacher"], expected)
    with pytest.raises(Stopped):
        run.train(config(copy), tmp_path / "run", until=2)
    shutil.rmtree(copy)
    resumed = run.train(config(copy), tmp_path / "run")
    equal(resumed.state.params, whole.state.params)
    trained = read_trained(tmp_path / "run")
    equal(trained.extra["teacher"], expected)
    assert trained.config["objective"]["teacher_from"] == str(copy)
    with pytest.raises(UserError, match=r"objective\.teacher_from: .*copy"):
        run.train(config(copy), tmp_path / "new")


def test_a_checkpoint_of_the_run_may_be_the_teacher(teacher, tmp_path):
    done = run.train(config(teacher / "checkpoints/2"), tmp_path / "run")
    equal(done.state.extra["teacher"], read_trained(teacher, 2).params)


def test_another_teacher_is_another_run(teacher, tmp_path):
    run.train(config(teacher), tmp_path / "run")
    with pytest.raises(UserError, match="teacher_from"):
        run.train(config(teacher / "checkpoints/2"), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_model": SMALL}, r"objective\.teacher_from: .* has a model with width=24, but .* has width=16"),
        (
            {"teacher_model": {**LARGE, "activation": "relu"}},  # the same shapes, another function
            r"objective\.teacher_from: .* has a model with activation=gelu.*, but .* has activation=relu",
        ),
        (
            {"mean": [0.4]},
            r"objective\.teacher_from: .* has seen images with objective\.mean=\(0\.5,\), but .*\(0\.4,\)",
        ),
        ({"teacher_from": "/nowhere"}, r"objective\.teacher_from: '/nowhere' must be a workdir, or one of its checkpo"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run.train(config(teacher, **settings), tmp_path / "run")


def test_a_teacher_of_other_classes():
    named = lambda *classes: dataclasses.replace(  # noqa: E731
        tiny.make("distillation").unwrapped, spec=dataclasses.replace(tiny.SPEC, classes=classes)
    )
    with pytest.raises(UserError, match=r"tells the classes cat, dog, but the data of this run have dog, cat$"):
        named("dog", "cat").frozen_part(named("cat", "dog"), {}, {})
    with pytest.raises(UserError, match=r"classes a, b, c, d, \.\.\., but .* have b, a$"):
        named("b", "a").frozen_part(named(*"abcde"), {}, {})


def test_a_teacher_must_be_a_classifier(tmp_path):
    other = {
        **BASE,
        "model": LARGE,
        "steps": 1,
        "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    }
    run.train(other, tmp_path / "simclr")
    with pytest.raises(UserError, match="is a run of SimCLR, must be one of a classifier"):
        run.train(config(tmp_path / "simclr"), tmp_path / "run")


def test_a_teacher_that_reads_other_inputs():
    groups = tiny.config("distillation")
    wrong = {**groups["objective"], "teacher_model": {"name": "bert", "preset": "tiny"}}
    with pytest.raises(UserError, match=r"objective\.teacher_model\.name: this model reads tokens, but the student"):
        objectives.create({**groups, "objective": wrong}, tiny.SPEC)
