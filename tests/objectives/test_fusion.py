"""Fusion: values and gradients are the weighted sums of those of the parts, each computed alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.base.hashing import name_id
from ssljax.objectives.base import Ctx, rows_of, stream, with_copies
from ssljax.train.microbatch import total
from ssljax.views import example_keys, fold_in

VIT = {**tiny._VIT, "positions": "sincos"}
MAE = {"name": "mae", **tiny.CONFIGS["mae"]["objective"]}
SIMCLR = {"name": "simclr", "projector": tiny._PROJECTOR}
CASES = {
    "mae and simclr": (VIT, {"pixels": MAE, "views": SIMCLR}, {"views": 0.5}),
    "an adversary and simclr": (
        {**tiny._VIT, "mask_token": True},
        {
            "pixels": {"name": "simmim", "mask_ratio": 0.75, "adversary": {"share": 1.0, "grows": False}},
            "views": SIMCLR,
        },
        {},
    ),
    "two uncoupled": (VIT, {"pixels": MAE, "turns": {"name": "rotation"}}, {"pixels": 0.25, "turns": 2.0}),
    "mixup and simclr": (VIT, {"views": SIMCLR, "labels": {"name": "classification", "mixup": 0.4}}, {}),
    "teacher and queue": (
        VIT,
        {"byol": {"name": "byol", **tiny._HEADS}, "swav": {"name": "swav", **tiny.CONFIGS["swav"]["objective"]}},
        {},
    ),
    "gpt": (
        {"name": "gpt", **tiny._TEXT, "pool": "last"},
        {"labels": {"name": "classification"}, "text": {"name": "causal_lm"}},
        {"text": 0.5},
    ),
}


def create(case, **more):
    model, parts, weights = CASES[case]
    config = {"model": model, "objective": {"name": "fusion", "parts": parts, "weights": weights, **more}}
    return objectives.create(config, tiny.SPEC, tiny.STEPS)


def context(batch):
    return Ctx(stream(0, 3, "encode"), jnp.int32(3), rows_of(batch))


def variables(objective, batch):
    return nn.meta.unbox(objective.init(jax.random.key(0), batch))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_is_the_weighted_sum_of_its_parts(case, slices):
    """Each part alone, with the same encoder, heads, state, and random keys."""
    objective, batch = create(case), tiny.batch()
    v, ctx = variables(objective, batch), context(batch)
    found = tiny.gradients(objective, v.params, v.extra, batch, ctx, slices)
    value, wanted = 0.0, jax.tree.map(jnp.zeros_like, v.params)
    for name, part in objective.members.items():
        own = {"encoder": v.params["encoder"], **v.params[name]}
        number, weight = name_id(name), CASES[case][2].get(name, 1.0)
        keys = fold_in(example_keys(stream(0, 3, "views"), ctx.row), number)
        inputs = part.views(keys, part.prepare(part.mixed(keys, batch, ctx.step)), ctx.step)
        inner = ctx.replace(key=jax.random.fold_in(ctx.key, number))

        def loss(params, part=part, name=name, inputs=inputs, inner=inner):
            outputs = part.encode(params, v.extra[name], inputs, inner)
            return total(part.loss(params, v.extra[name], outputs, inputs, inner).terms)

        alone, grads = jax.value_and_grad(loss)(own)
        value += weight * float(alone)
        grads = jax.tree.map(lambda x, weight=weight: weight * x, grads)
        wanted["encoder"] = jax.tree.map(jnp.add, wanted["encoder"], grads.pop("encoder"))
        wanted[name] = grads
    assert float(found.value) == pytest.approx(float(value), rel=2e-5)
    # Leaves with a gradient of zero, such as the bias of keys, have the round-off of the others.
    largest = max(float(jnp.abs(b).max()) for b in jax.tree.leaves(wanted) if b.size)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found.grads), jax.tree.leaves(wanted), strict=True):
        scale = max(1e-3 * largest, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=5e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_state_follows_the_parts():
    objective, batch = create("teacher and queue"), tiny.batch()
    v, ctx = variables(objective, batch), context(batch)
    loss = tiny.gradients(objective, v.params, v.extra, batch, ctx, 2).loss
    extra = objective.update(v.extra, v.params, loss.sums, loss.rows, jnp.int32(3))
    for name, part in objective.members.items():
        own = {"encoder": v.params["encoder"], **v.params[name]}
        wanted = part.update(v.extra[name], own, loss.sums[name], loss.rows[name], jnp.int32(3))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, extra[name], wanted))


def test_evaluations_read_one_part():
    batch = tiny.batch()
    for read, wanted in ((None, "byol"), ("swav", "swav")):
        objective = create("teacher and queue", read=read)
        v = variables(objective, batch)
        own = {"encoder": v.params["encoder"], **v.params[wanted]}
        prepared = objective.prepare(batch)
        features = objective.members[wanted].features(own, v.extra[wanted], prepared)["pooled"]
        assert jnp.array_equal(objective.features(v.params, v.extra, prepared)["pooled"], features)


def test_one_encoder_has_what_all_parts_read():
    """The classifier alone does not initialise the output layer of the language model."""
    v = variables(create("gpt"), tiny.batch())
    assert "encoder" in v.params and set(v.params) == {"encoder", "labels", "text"} and v.params["text"] == {}
    alone = variables(create("gpt").members["text"], tiny.batch())
    assert jax.tree.structure(v.params["encoder"]) == jax.tree.structure(alone.params["encoder"])


def test_held_out_parts_have_no_augmentation():
    held = create("mixup and simclr").held_out()
    assert held.members["labels"].mixup == 0 and held.coupled
    assert isinstance(held, objectives.REGISTRY.get("fusion"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"a": MAE}}, "objective.parts: got a, must be two or more"),
        ({"parts": {"a": MAE, "b": {"name": "simclrr"}}}, r"objective\.parts\.b\.name: .*simclr"),
        ({"parts": {"a": MAE, "b": {"name": "simclr", "temprature": 1}}}, r"objective\.parts\.b\.temprature"),
        ({"parts": {"a": MAE, "encoder": SIMCLR}}, "objective.parts.encoder: this is the name of the shared encoder"),
        ({"weights": {"pixel": 1.0}}, r"objective\.weights: 'pixel' is no part \(did you mean|objective\.weights"),
        ({"weights": {"pixels": -1.0}}, r"objective\.weights\.pixels: got -1\.0, must be a number of at least 0"),
        ({"read": "simclr"}, r"objective\.read: 'simclr' is no part"),
        ({"parts": {"a": MAE, "b": {"name": "mlm"}}}, r"objective\.parts\.b: this objective reads tokens"),
        ({"parts": {"a": MAE, "b": {"name": "clip"}}}, r"objective\.parts\.b: this objective reads two kinds of input"),
        ({"parts": {"a": MAE, "b": {"name": "simmim"}}}, r"model\.mask_token"),
        ({"parts": {"a": MAE, "b": {**SIMCLR, "queue": 4}}}, r"objective\.parts\.b\.queue: this objective sees no"),
    ],
)
def test_mistakes_are_named(change, message):
    objective = {"name": "fusion", "parts": {"pixels": MAE, "views": SIMCLR}, **change}
    if "parts" in change:
        objective.pop("weights", None)
    with pytest.raises(UserError, match=message):
        objectives.create({"model": VIT, "objective": objective}, tiny.SPEC, tiny.STEPS)


def test_settings_of_parts_can_be_replaced():
    objective = create("two uncoupled")
    other = dataclasses.replace(objective, weights={"pixels": 0.0})
    assert other.members["pixels"] == objective.members["pixels"] and other.weights["pixels"] == 0.0


def test_prompts_are_read_as_the_shown_part_reads_them():
    parts = {"labels": {"name": "classification"}, "text": {"name": "prefix_lm"}}
    config = {"model": CASES["gpt"][0], "objective": {"name": "fusion", "parts": parts, "read": "text"}}
    objective = objectives.create(config, tiny.SPEC, tiny.STEPS)
    assert objective.prefixed and not create("gpt").prefixed
    batch = tiny.batch()
    assert np.array_equal(objective.fitted(batch), objective.members["text"].fitted(batch))
    assert not create("gpt").reads_other_rows and create("mae and simclr").reads_other_rows


@pytest.mark.parametrize("name", ["byol", "dino", "data2vec", "i_jepa"])
def test_teachers_begin_as_copies_of_the_shared_encoder(name):
    """Also those of a part that is not the first, whose own draw of the encoder is not used."""
    model = tiny.CONFIGS[name]["model"]
    parts = {"turns": {"name": "rotation"}, "taught": {"name": name, **tiny.CONFIGS[name]["objective"]}}
    objective = objectives.create({"model": model, "objective": {"name": "fusion", "parts": parts}}, tiny.SPEC)
    v = variables(objective, tiny.batch())
    teacher = v.extra["taught"]["teacher"]["encoder"]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, teacher, v.params["encoder"]))


def test_a_teacher_of_another_run_cannot_be_a_part():
    parts = {"pixels": MAE, "taught": {"name": "distillation", "teacher_from": "/nowhere"}}
    with pytest.raises(UserError, match=r"objective\.parts\.taught: a part cannot read a teacher from another run"):
        objectives.create({"model": VIT, "objective": {"name": "fusion", "parts": parts}}, tiny.SPEC)


@pytest.mark.parametrize("name", [name for name in tiny.CONFIGS if name not in ("distillation", "fusion")])
def test_copies_in_the_state_are_found_by_their_paths(name):
    """So `init_from` fills teachers too: each leaf of a teacher has the path and the value of a parameter."""
    objective = tiny.make(name)
    v = variables(objective, tiny.batch())
    if not (isinstance(v.extra, dict) and "teacher" in v.extra):
        return
    doubled = jax.tree.map(lambda x: 2 * x + 1, v.params)
    filled = with_copies(v.extra, doubled, objective.not_copies)["teacher"]
    wanted = jax.tree.map(lambda x: 2 * x + 1, v.extra["teacher"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, filled, wanted))
