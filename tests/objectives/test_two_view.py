"""Objectives of two views: the loss of each by its definition, and what teachers, targets and queues do."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import loss_definitions as brute
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import unit

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.base.hashing import name_id
from ssljax.objectives.base import Ctx, apply
from ssljax.objectives.projector import Predictor
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import TwoView, Views

N, E, QUEUE = 6, 5, 7
ONES = np.ones(N)
LABELS = np.array([0, 1, 0, 2, 1, 1])
KEY = jax.random.key(3)
BOTH = ((0, 1), (1, 0))
METHODS = [name for name in objectives.REGISTRY if issubclass(objectives.REGISTRY.get(name), TwoView)]
CTX = Ctx(KEY, jnp.int32(0), jnp.arange(N), train=True)


def method(name, **settings):
    return dataclasses.replace(tiny.make(name).unwrapped, **settings)


def both(p):
    return np.concatenate([p[:, 0], p[:, 1]])


def nt_xent(z1, z2, t):
    z = [unit(x) for x in (*z1, *z2)]
    values = []
    for i, x in enumerate(z):
        logits = np.array([x @ y / t for j, y in enumerate(z) if j != i])
        values.append(np.log(np.exp(logits).sum()) - x @ z[(i + N) % (2 * N)] / t)
    return np.mean(values)


def nearest(z, queue):
    return np.stack([queue[np.argmax([unit(x) @ y for y in queue])] for x in z])


def moco(p, t, queue, symmetric):
    pairs = BOTH if symmetric else BOTH[:1]
    if queue is None:
        return 2 * 0.2 * sum(np.mean(brute.info_nce(p[:, a], t[:, b], ONES, 0.2)) for a, b in pairs)
    return sum(np.mean(brute.info_nce(p[:, a], t[:, b], ONES, 0.2, queue)) for a, b in pairs)


def nnclr(p, t, queue):
    return np.mean([brute.info_nce(nearest(t[:, a], queue), p[:, b], ONES, 0.1) for a, b in BOTH])


def align_uniform(p, weight, alpha, t):
    distances = [np.linalg.norm(unit(a) - unit(b)) for a, b in zip(p[:, 0], p[:, 1])]
    spread = 0.0
    for v in (0, 1):
        pairs = [((unit(a) - unit(b)) ** 2).sum() for a, b in itertools.combinations(p[:, v], 2)]
        spread += np.log(np.mean(np.exp(-t * np.array(pairs)))) / 2
    return weight * np.mean(np.array(distances) ** alpha) + spread


def lejepa(p, weight, directions):
    spread = np.mean([brute.sigreg(p[:, v], directions, ONES) for v in (0, 1)])
    distance = np.mean([np.mean([(p[:, v] - p.mean(1)) ** 2 for v in (0, 1)])])
    return (1 - weight) * distance + weight * spread


def graph_cl(first, second, temperature, positive):
    """You et al. 2020, eq. 3, pair by pair."""
    values = []
    for i, a in enumerate(first):
        s = [unit(a) @ unit(b) / temperature for b in second]
        others = [x for j, x in enumerate(s) if positive or j != i]
        values.append(np.log(np.sum(np.exp(others))) - s[i])
    return np.mean(values)


def hsic(p, t):
    return brute.hsic(np.concatenate([p, t], 1), ONES)


def directions(count):
    key = jax.random.fold_in(KEY, name_id("directions"))
    return np.asarray(jax.random.normal(key, (E, count)), np.float64)


# (name of the method, settings, definition: (z, p, t, queue) -> loss)
CASES = [
    ("simclr", {"temperature": 0.3}, lambda z, p, t, q: nt_xent(p[:, 0], p[:, 1], 0.3)),
    (
        "dcl",
        {"weighted": False, "temperature": 0.1},
        lambda z, p, t, q: np.mean(brute.decoupled(p[:, 0], p[:, 1], ONES, 0.1, False)),
    ),
    (
        "dcl",
        {"weighted": True, "temperature": 0.2},
        lambda z, p, t, q: np.mean(brute.decoupled(p[:, 0], p[:, 1], ONES, 0.2, True)),
    ),
    ("moco", {"queue": 0}, lambda z, p, t, q: moco(p, t, None, True)),
    ("moco", {"queue": 0, "symmetric": False}, lambda z, p, t, q: moco(p, t, None, False)),
    ("moco", {"queue": QUEUE, "symmetric": False}, lambda z, p, t, q: moco(p, t, q, False)),
    ("nnclr", {"queue": QUEUE}, lambda z, p, t, q: nnclr(p, t, q)),
    (
        "sup_con",
        {},
        lambda z, p, t, q: brute.sup_con(
            np.concatenate([p[:, 0], p[:, 1]]), np.tile(LABELS, 2), np.ones(2 * N), 0.1, "out"
        ),
    ),
    (
        "sup_con",
        {"positive_mean": "inside"},
        lambda z, p, t, q: brute.sup_con(
            np.concatenate([p[:, 0], p[:, 1]]), np.tile(LABELS, 2), np.ones(2 * N), 0.1, "in"
        ),
    ),
    *(
        (
            "triplet",
            {"positives": positives, **options},
            lambda z, p, t, q, y=y, o=options: brute.triplet(both(p), np.tile(y, 2), np.ones(2 * N), **o),
        )
        for positives, y in (("labels", LABELS), ("views", np.arange(N)))
        for options in ({"margin": 0.3, "mining": "semi"}, {"mining": "hard", "soft": True, "normalize": False})
    ),
    *(
        (
            "contrastive_pairs",
            {"positives": positives, "margin": 2.0},
            lambda z, p, t, q, y=y: np.mean(brute.contrastive_pairs(both(p), np.tile(y, 2), np.ones(2 * N), 2.0, True)),
        )
        for positives, y in (("labels", LABELS), ("views", np.arange(N)))
    ),
    ("n_pair", {"l2": 0.1}, lambda z, p, t, q: np.mean(brute.n_pair(p[:, 0], p[:, 1], ONES, 0.1))),
    ("align_uniform", {"weight": 0.7, "alpha": 1.5, "t": 1.2}, lambda z, p, t, q: align_uniform(p, 0.7, 1.5, 1.2)),
    ("simcse", {"symmetric": False}, lambda z, p, t, q: np.mean(brute.simcse(p[:, 0], t[:, 1], ONES, 0.05))),
    (
        "byol",
        {},
        lambda z, p, t, q: np.mean([2 - 2 * unit(p[i, a]) @ unit(t[i, b]) for i in range(N) for a, b in BOTH]) * 2,
    ),
    ("simsiam", {}, lambda z, p, t, q: np.mean([-unit(p[i, a]) @ unit(t[i, b]) for i in range(N) for a, b in BOTH])),
    (
        "simsiam",
        {"stop_gradient": False},
        lambda z, p, t, q: np.mean([-unit(p[i, a]) @ unit(t[i, b]) for i in range(N) for a, b in BOTH]),
    ),
    (
        "barlow_twins",
        {"lambda_offdiag": 0.1, "scale": 0.5},
        lambda z, p, t, q: brute.barlow_twins(p[:, 0], t[:, 1], ONES, 0.1, 0.5),
    ),
    (
        "vicreg",
        {"sim": 5.0, "var": 7.0, "cov": 3.0},
        lambda z, p, t, q: brute.vicreg(p[:, 0], t[:, 1], ONES, True, 5.0, 7.0, 3.0),
    ),
    ("lejepa", {"weight": 0.2, "directions": 8}, lambda z, p, t, q: lejepa(p, 0.2, directions(8))),
    ("ssl_hsic", {}, lambda z, p, t, q: hsic(p, t)),
    *(
        (
            "graph_cl",
            {"temperature": 0.3, "positive_in_denominator": positive},
            lambda z, p, t, q, positive=positive: graph_cl(p[:, 0], p[:, 1], 0.3, positive),
        )
        for positive in (False, True)
    ),
]


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    z, p, target = rng.normal(size=(3, N, 2, E))
    queue = rng.normal(size=(QUEUE, E))
    return z, p, target, queue / np.linalg.norm(queue, axis=1, keepdims=True)


def compared(objective, z, p, target, queue):
    """The loss of a batch in float32."""
    seen = Views(*(jnp.asarray(x, jnp.float32) for x in (z, p, target)))
    inputs, extra = {"label": jnp.asarray(LABELS)}, {"queue": jnp.asarray(queue, jnp.float32)}
    return objective.compare(seen, inputs, extra, CTX)


def test_every_method_has_a_definition():
    assert {name for name, _, _ in CASES} == set(METHODS)


@pytest.mark.parametrize(("name", "settings", "definition"), CASES, ids=[f"{n}-{s}" for n, s, _ in CASES])
def test_loss_by_its_definition(name, settings, definition):
    objective = method(name, **settings)
    found = jax.jit(lambda *given: jnp.mean(compared(objective, *given).values))(*arrays())
    np.testing.assert_allclose(found, definition(*arrays()), rtol=2e-5)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_symmetric_losses_stay_symmetric_with_heads_of_one_side(name):
    """With a predictor or a teacher the loss is the mean over both directions."""
    z, p, target, queue = arrays()
    swapped = (z[:, ::-1], p[:, ::-1], target[:, ::-1], queue)
    for settings in ({"predictor": Predictor(hidden=24)}, {"teacher": Teacher()}):
        objective = method(name, **settings)
        found = float(jnp.mean(compared(objective, z, p, target, queue).values))
        np.testing.assert_allclose(found, float(jnp.mean(compared(objective, *swapped).values)), rtol=1e-5)
        definition = {
            "barlow_twins": lambda a, b: brute.barlow_twins(a, b, ONES),
            "vicreg": lambda a, b: brute.vicreg(a, b, ONES, True),
        }[name]
        right = np.mean([definition(p[:, a], target[:, b]) for a, b in BOTH])
        np.testing.assert_allclose(found, right, rtol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_parts_without_an_effect_are_refused(name):
    """A teacher, or a queue, that the loss does not read."""
    objective = method(name)
    z, p, target, queue = (jnp.asarray(x, jnp.float32) for x in arrays())
    with_teacher = dataclasses.replace(objective, teacher=Teacher(), queue=QUEUE if name == "nnclr" else 0)
    value = lambda target: jnp.mean(compared(with_teacher, z, p, target, queue).values)  # noqa: E731
    moved = not np.isclose(float(value(target)), float(value(target[:, ::-1] + 0.5)), rtol=1e-4)
    assert moved == objective.reads_target
    groups = tiny.config(name)
    for part, allowed in (("teacher", objective.reads_target), ("queue", objective.reads_queue)):
        more = {**groups["objective"], part: {"momentum": 0.9} if part == "teacher" else 32}
        if allowed:
            objectives.create({**groups, "objective": more}, tiny.SPEC, tiny.STEPS)
            continue
        with pytest.raises(UserError, match=rf"objective\.{part}: this objective .*, must be (None|0)"):
            objectives.create({**groups, "objective": more}, tiny.SPEC, tiny.STEPS)


def test_texts_need_dropout():
    groups = tiny.config("simcse")
    with pytest.raises(UserError, match=r"model\.dropout: got 0, must be more than 0 .* two views of tokens"):
        objectives.create({**groups, "model": {**groups["model"], "dropout": 0.0}}, tiny.SPEC)


def test_parts_of_the_losses_add_up():
    z, p, target, queue = arrays()
    for name, total in (
        ("vicreg", lambda o, m: o.sim * m["invariance"] + o.var * m["variance"] + o.cov * m["covariance"]),
        ("barlow_twins", lambda o, m: o.scale * (m["on_diagonal"] + o.lambda_offdiag * m["off_diagonal"])),
        ("ssl_hsic", lambda o, m: o.gamma * m["hsic_zz_root"] - m["hsic_zy"]),
        ("lejepa", lambda o, m: (1 - o.weight) * m["distance"] + o.weight * m["sigreg"]),
    ):
        objective = method(name)
        found = compared(objective, z, p, target, queue)
        parts = {part: s / w for part, (s, w) in found.metrics.items()}
        np.testing.assert_allclose(jnp.mean(found.values), total(objective, parts), rtol=1e-5)


# Methods whose second argument is a constant: BYOL and its kin, and keys of contrastive methods.
CONSTANT = {"byol", "simsiam", "moco"}


@pytest.mark.parametrize("name", sorted(CONSTANT))
def test_targets_have_no_gradient(name):
    objective = method(name)
    value = lambda target, p: jnp.mean(compared(objective, p, p, target, arrays()[3]).values)  # noqa: E731
    _, p, target, _ = (jnp.asarray(x, jnp.float32) for x in arrays())
    to_target, to_p = jax.grad(value, (0, 1))(target, p)
    assert not np.any(np.asarray(to_target)) and np.abs(to_p).max() > 1e-3


def test_simsiam_without_stop_gradient_learns_from_both_sides():
    objective = method("simsiam", stop_gradient=False)
    _, p, target, queue = arrays()
    value = lambda target: jnp.mean(compared(objective, p, p, target, queue).values)  # noqa: E731
    found = np.asarray(jax.grad(value)(jnp.asarray(target, jnp.float32)), np.float64)
    step = 1e-4 * np.random.default_rng(1).normal(size=target.shape)
    cos = lambda t: np.mean([-unit(p[i, a]) @ unit(t[i, b]) for i in range(N) for a, b in BOTH])  # noqa: E731
    np.testing.assert_allclose((found * step).sum(), (cos(target + step) - cos(target - step)) / 2, rtol=1e-3)


def parts_of(name, **settings):
    """An objective, its variables, the encoder's outputs for a batch, and the inputs."""
    objective = method(name, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)
    outputs = {
        part: jnp.asarray(rng.normal(size=(tiny.BATCH, 2, objective.model.width)), jnp.float32)
        for part in ("student", *(["teacher"] if objective.teacher else []))
    }
    return objective, params, extra, outputs, {"label": batch["label"]}


# Methods whose loss treats the two views as one set of vectors.
JOINT = {"simclr", "dcl", "sup_con", "align_uniform", "triplet", "contrastive_pairs", "n_pair"}


@pytest.mark.parametrize("name", METHODS)
def test_heads_of_each_view(name):
    """Projector and predictor see each view alone, or both together for a method that is `joint`."""
    objective, params, extra, outputs, inputs = parts_of(name)
    seen = {}

    class Recorded(type(objective)):
        def compare(self, views, inputs, extra, ctx):
            seen["views"] = views
            return super().compare(views, inputs, extra, ctx)

    recording = Recorded(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})
    recording.loss(params, extra, outputs, inputs, CTX.replace(row=jnp.arange(tiny.BATCH)))

    def head(module, params, x):
        if name in JOINT:
            return apply(module, params, x)
        return jnp.stack([apply(module, params, x[:, v]) for v in (0, 1)], 1)

    z = head(objective._projector(), params["projector"], outputs["student"])
    p = head(objective._predictor(), params["predictor"], z) if objective.predictor else z
    target = z
    if objective.teacher:
        target = head(objective._projector(), extra["teacher"]["projector"], outputs["teacher"])
    for found, right in zip(seen["views"], (z, p, target), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


def test_queue_has_the_newest_vectors_first():
    objective, params, extra, _, _ = parts_of("moco", queue=20)
    rng = np.random.default_rng(0)
    size = objective.projector.output
    first, second = rng.normal(size=(2, 16, size)).astype(np.float32)
    for rows in (first, second):
        extra = objective.update(extra, params, {}, jnp.asarray(rows), jnp.int32(0))
    right = np.concatenate([second, first])[:20]
    np.testing.assert_allclose(extra["queue"], right / np.linalg.norm(right, axis=1, keepdims=True), atol=1e-6)


def test_teacher_follows_encoder_and_projector():
    objective, params, extra, _, _ = parts_of("byol")
    assert set(extra["teacher"]) == {"encoder", "projector"}  # the predictor has no teacher
    moved = jax.tree.map(lambda x: x + 1.0, params)
    step = jnp.int32(4)
    decay = 1 - (1 - objective.teacher.momentum) * (np.cos(np.pi * 4 / tiny.STEPS) + 1) / 2
    after = objective.update(extra, moved, {}, (), step)["teacher"]
    for old, new in zip(jax.tree.leaves(extra["teacher"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old + (1 - decay), atol=1e-6)
    constant = dataclasses.replace(objective, teacher=dataclasses.replace(objective.teacher, schedule="constant"))
    after = constant.update(extra, moved, {}, (), step)["teacher"]
    for old, new in zip(jax.tree.leaves(extra["teacher"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old + (1 - objective.teacher.momentum), atol=1e-6)


def test_labels_are_required_by_sup_con():
    elements = {k: v for k, v in tiny.SPEC.elements.items() if k != "label"}
    with pytest.raises(UserError, match=r"objective\.name: sup_con reads labels, but the data have none"):
        objectives.create(tiny.config("sup_con"), dataclasses.replace(tiny.SPEC, elements=elements))
