"""The step is exact: slices, meshes, `vmap` over seeds and restarts change results by round-off at most."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_objectives as tiny
from daily import TODAY, at_most, daily

from ssljax import objectives, parallel
from ssljax.base.durations import RunLengths
from ssljax.objectives.base import Ctx, stream
from ssljax.train import noise_scale, optimizers
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints
from ssljax.train.microbatch import _scan_sum
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program, compiler_options
from ssljax.train.state import LARGEST_SCALE, first_loss_scale, update_loss_scale

NAMES = list(objectives.REGISTRY)
APART = -(-len(NAMES) // 3)
# Each day causal_lm and one more are tested on a mesh, and at most three in slices; `pytest -m full` tests all.
ON_A_MESH, IN_SLICES = ("causal_lm", NAMES[TODAY % len(NAMES)]), NAMES[(TODAY + 2) % APART :: APART]


def tiered(*always):
    """Parameters for all objectives; those that are not named have the marker `full`."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.full) for name in NAMES]


def arguments_of(objective, seed=0, step=3):
    batch = tiny.batch()
    variables = jax.jit(lambda: nn.unbox(objective.init(stream(seed, 0, "init"), batch)))()
    ctx = Ctx(stream(seed, step, "encode"), jnp.int32(step), jnp.arange(tiny.BATCH, dtype=jnp.int32))
    return variables, batch, ctx


def close(a, b, rtol, what):
    """Compares trees relative to the largest entry of each leaf: the round-off of a sum is relative to its terms."""
    flat_a, flat_b = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    assert len(flat_a) == len(flat_b)
    scale = max((float(np.abs(x).max()) for x in flat_b if np.size(x)), default=0.0)
    for (path, x), y in zip(flat_a, flat_b):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        # The absolute tolerance is for gradients that are zero except for round-off, such as biases of keys.
        atol = rtol * max(np.abs(y).max(initial=0), 1e-2 * scale)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=f"{what}{jax.tree_util.keystr(path)}")


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.full), 4])
@pytest.mark.parametrize("name", tiered(*IN_SLICES))
def test_slices_equal_one_batch(name, count):
    objective = tiny.make(name)
    variables, batch, ctx = arguments_of(objective)

    def run(slices):
        return jax.jit(lambda v, i, c: tiny.gradients(objective, v.params, v.extra, i, c, slices))(
            variables, batch, ctx
        )

    one = run(1)
    assert np.isfinite(one.value)
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(one.grads))
    many = run(count)
    close(many.value, one.value, 1e-5, "loss")
    close(many.loss, one.loss, 1e-5, "loss")
    close(many.grads, one.grads, 1e-5, "grads")


def test_averaging_means_of_slices_would_be_caught():
    """The check above can fail: ragged rows make the mean of means differ from the mean."""
    objective = tiny.make("causal_lm")
    variables, batch, ctx = arguments_of(objective)
    value = jax.jit(lambda i, c: tiny.gradients(objective, variables.params, variables.extra, i, c, 1).value)
    halves = [slice(0, 8), slice(8, 16)]
    parts = [value(jax.tree.map(lambda x, h=h: x[h], batch), ctx.replace(row=ctx.row[h])) for h in halves]
    assert abs(float(sum(parts) / 2 - value(batch, ctx))) > 1e-4


def test_the_weights_pass_has_no_encoder():
    """An uncoupled objective in slices compiles to as many matrix products as without the pass for the weights."""
    objective = tiny.make("causal_lm", dropout=0.0)
    variables, batch, ctx = arguments_of(objective)

    def products(slices):
        f = jax.jit(lambda v, i: tiny.gradients(objective, v.params, v.extra, i, ctx, slices).grads)
        return f.lower(variables, batch).compile().as_text().count(" dot(")

    assert products(2) == products(1)


def make_run(name, mesh_shape=(1, 1, 1), microbatches=1, seed=0, optimizer="adamw", model=None, ema=0.9, **settings):
    """(jitted step, state) of the smallest run on a mesh of sizes `mesh_shape`; `settings` of the objective.

    Most tests compile the same step on one device, which is then read from the compilation cache.
    """
    objective = dataclasses.replace(tiny.make(name, **model or {}), **settings)
    count = int(np.prod(mesh_shape))
    mesh = parallel.make_mesh(parallel.MeshConfig(*mesh_shape), jax.devices()[:count])
    rule = optimizers.REGISTRY.get(optimizer)(learning_rate=1e-3, clip_norm=1.0)
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(rule, lambda step: 1.0, lengths)
    program = Program.build(objective, optimization, mesh, tiny.batch(), microbatches, ema)
    with parallel.mesh_context(mesh):
        state = program.jitted_init()(seed)
        jitted = program.jitted_step()

    def run(steps, given=None):
        nonlocal state
        state, lines = given or state, []
        with parallel.mesh_context(mesh):
            for i in range(steps):
                state, metrics = jitted(state, program.put(tiny.batch(i)))
                metrics.pop(noise_scale.NAME, None)  # depends on the slices; see test_noise_scale.py
                lines.append({k: float(v) for k, v in metrics.items()})
        # 0: the cache of all programs of the process, which is bounded, has dropped it.
        assert jitted._cache_size() <= 1, "the step was compiled more than once"
        return lines, state

    return run, program.init, program.step


def first_moments(state):
    """Adam's averaged gradients."""
    is_adam = lambda s: hasattr(s, "mu")  # noqa: E731
    return next(s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s))


def five_steps(run):
    """(metrics of five steps, first moments after the first). Later moments differ by more than round-off: Adam makes
    full steps from gradients that are zero but for round-off (key biases)."""
    lines, state = run(1)
    moments = jax.device_get(first_moments(state))
    return lines + run(4, state)[0], moments


def compare(a, b, rtol=1e-4, loose=()):
    """Compares metrics; `loose` is {metric: another tolerance, or None to leave it out}."""
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.keys() == y.keys()
        for k in x:
            tolerance = dict(loose).get(k, rtol)
            if tolerance is not None:
                np.testing.assert_allclose(x[k], y[k], rtol=tolerance, atol=1e-5, err_msg=f"{k} at step {step}")


@pytest.mark.parametrize("name", tiered(*ON_A_MESH))
def test_a_mesh_with_slices_equals_one_device(name):
    """The gradients of the first step, leaf by leaf (a partitioner's mistake was once seen there only); then losses,
    metrics and the norm of the gradients over five steps."""
    one, many = five_steps(make_run(name)[0]), five_steps(make_run(name, (2, 2, 2), microbatches=2)[0])
    close(many[1], one[1], 1e-4, "first moment")
    assert all(np.isfinite(v) for line in one[0] for v in line.values())
    # Adam's full steps from gradients that are zero but for round-off show first in cosines.
    compare(many[0], one[0], loose={"uniformity": 1e-3, "alignment": 1e-3})


@pytest.mark.parametrize("vocab_size", daily([65, 66, 67], 1))
def test_a_vocabulary_that_a_mesh_does_not_divide(vocab_size):
    """XLA's partitioner aborted on the lookup in a table that is split along its width."""
    model = {"vocab_size": vocab_size}
    one, many = (make_run("causal_lm", *how, model=model)[0](1)[0] for how in (((1, 1, 1), 1), ((2, 2, 2), 2)))
    compare(many, one)


@pytest.mark.parametrize("name", daily(["mae", "i_jepa"], 2))
def test_learned_positions_of_visible_patches_in_slices_on_a_mesh(name):
    """XLA's partitioner aborted on their lookup."""
    model = {"positions": "learned"}
    one, many = (make_run(name, *how, model=model)[0](1)[0] for how in (((1, 1, 1), 1), ((2, 2, 2), 2)))
    compare(many, one)


@pytest.mark.parametrize(
    "layers", [3, pytest.param(4, marks=pytest.mark.full), pytest.param(5, marks=pytest.mark.full)]
)
def test_deep_heads_on_a_mesh_equal_one_device(layers):
    """XLA's partitioner once computed other projections on such a mesh, without an error."""
    projector = dataclasses.replace(tiny.make("simclr").projector, layers=layers)
    one, many = (make_run("simclr", mesh, projector=projector)[0](1)[0] for mesh in ((1, 1, 1), (2, 2, 2)))
    compare(many, one)


@pytest.mark.parametrize("name", tiered("causal_lm"))
def test_a_mesh_that_splits_the_length_equals_one_device(name):
    """Attention runs around the ring of devices; the rest of a model is partitioned by XLA."""
    one, many = five_steps(make_run(name)[0]), five_steps(make_run(name, (2, 1, 2, 2))[0])
    close(many[1], one[1], 1e-4, "first moment")
    compare(many[0], one[0])


def test_a_ring_within_sums_of_gradients_equals_one_device():
    """Slices are summed over `data` once; within, keys travel along `context`."""
    one = five_steps(make_run("causal_lm")[0])
    many = five_steps(make_run("causal_lm", (2, 1, 2, 2), microbatches=2)[0])
    close(many[1], one[1], 1e-4, "first moment")
    compare(many[0], one[0])


@pytest.mark.parametrize("capacity", [None, pytest.param(1.25, marks=pytest.mark.full)])
def test_a_mesh_that_splits_experts_equals_one_device(capacity):
    """The axis `expert` splits the rows of a batch outside of the experts, and the experts."""
    experts = {"count": 4, "top_k": 2, "capacity": capacity, "balance": 0.3, "z_loss": 0.2}
    model = {"experts": experts}
    one = five_steps(make_run("causal_lm", model=model)[0])
    many = five_steps(make_run("causal_lm", (2, 1, 1, 1, 4), microbatches=2, model=model)[0])
    close(many[1], one[1], 1e-4, "first moment")
    compare(many[0], one[0])


RESNET = {"name": "resnet", "preset": None, "channels": 8, "depths": [1, 1], "groups": 4, "stem": "small"}


@pytest.mark.full
@pytest.mark.parametrize("name", ["simclr", "classification"])
def test_convolutions_on_a_mesh_with_slices_equal_one_device(name):
    model = {**RESNET, "drop_path": 0.1}
    one = five_steps(make_run(name, model=model)[0])
    many = five_steps(make_run(name, (2, 2, 2), microbatches=2, model=model)[0])
    close(many[1], one[1], 1e-4, "first moment")
    # Adam's first step makes columns of the classifier equal whose gradients have the same signs: ties of logits, which
    # round-off decides.
    compare(many[0], one[0], loose={"accuracy": None})


@pytest.mark.parametrize("name", ["simclr", pytest.param("classification", marks=pytest.mark.full)])
def test_batch_statistics_of_a_slice_cover_all_devices(name):
    """Each device computes its own rows of a slice, and normalises them by the statistics of the whole slice."""
    model = {**RESNET, "norm": "batch"}
    one = five_steps(make_run(name, microbatches=2, model=model)[0])
    many = five_steps(make_run(name, (4, 1, 1), microbatches=2, model=model)[0])
    close(many[1], one[1], 1e-4, "first moment")
    compare(many[0], one[0], loose={"accuracy": None})


@pytest.mark.full
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_equals_one_device(name, mesh):
    compare(make_run(name, mesh)[0](5)[0], make_run(name)[0](5)[0])


@pytest.mark.parametrize("name", at_most(NAMES, 3))
def test_a_restored_state_goes_on_bit_for_bit(name, tmp_path):
    run = make_run(name)[0]
    _, state = run(2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), {})
    checkpoints.save(state, 2)
    checkpoints.wait()
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    lines, whole = run(2)
    restored, step = checkpoints.restore(target)
    checkpoints.close()
    assert step == 2
    again, state = run(2, restored)
    assert again == lines
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.parametrize("name", tiered("causal_lm"))
def test_a_map_over_seeds_equals_separate_runs(name):
    seeds = jnp.arange(3)
    _, born, step = make_run(name)
    states = jax.vmap(born)(seeds)
    mapped = jax.jit(jax.vmap(step, in_axes=(0, None)))
    lines = []
    for i in range(3):
        states, metrics = mapped(states, tiny.batch(i))
        metrics.pop(noise_scale.NAME, None)  # losses that compare examples have none
        lines.append(metrics)
    for seed in range(3):
        single, _ = make_run(name, seed=seed)[0](3)
        # Adam makes full steps of gradients that are round-off, which changes the next gradient norm.
        compare([{k: float(v[seed]) for k, v in line.items()} for line in lines], single, loose={"grad_norm": 5e-3})


def test_hyper_settings_vary_under_the_map():
    """In a sweep over temperature and learning rate, the first copy equals the run with these settings."""
    settings = [(0.5, 1e-3), (0.1, 1e-2)]  # the rate of make_run, and ten times that
    _, born, step = make_run("simclr")
    states = [
        born(0).replace(hyper={"objective.temperature": jnp.float32(t), "optimizer.learning_rate": jnp.float32(r)})
        for t, r in settings
    ]
    before = states[0].params["encoder"]["patch"]["kernel"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    mapped = jax.jit(jax.vmap(step, in_axes=(0, None)))
    lines = []
    for i in range(2):
        stacked, metrics = mapped(stacked, tiny.batch(i))
        lines.append(metrics)
    single, _ = make_run("simclr", temperature=0.5)[0](2)
    compare([{k: float(v[0]) for k, v in line.items()} for line in lines], single)
    moved = np.abs(stacked.params["encoder"]["patch"]["kernel"] - before).mean((1, 2))
    assert moved[1] > 5 * moved[0] > 0


def test_averaged_parameters_follow_the_recursion():
    run, born, _ = make_run("causal_lm", ema=0.75)
    want = born(0).params
    for _ in range(3):
        _, state = run(1)
        want = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, want, state.params)
    close(state.ema, want, 1e-6, "average")
    assert not np.allclose(jax.tree.leaves(state.ema)[0], jax.tree.leaves(state.params)[0])


def test_a_non_finite_step_leaves_only_its_count():
    _, born, step = make_run("classification")
    state = born(0)
    batch = {**tiny.batch(), "image": tiny.batch()["image"] / 255}  # a float like NaN, so that both share one program
    bad = {**batch, "image": jnp.full_like(batch["image"], jnp.nan)}
    jitted = jax.jit(step)
    after, _ = jitted(state, bad)
    assert int(after.step) == 1 and int(after.guard["skipped"]) == 1 and int(after.guard["streak"]) == 1
    assert int(after.guard["last"]) == 0
    for a, b in zip(jax.tree.leaves((after.params, after.opt_state)), jax.tree.leaves((state.params, state.opt_state))):
        np.testing.assert_array_equal(a, b)
    good, _ = jitted(after, batch)
    assert int(good.guard["streak"]) == 0 and int(good.guard["skipped"]) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(good.meters))


@pytest.mark.parametrize(("name", "slices"), daily([("causal_lm", 1), ("causal_lm", 2), ("simclr", 2)], 3))
def test_a_scaled_loss_has_the_same_gradients(name, slices):
    """A power of two only moves exponents."""
    objective = tiny.make(name)
    variables, batch, ctx = arguments_of(objective)

    @jax.jit
    def run(scale):
        made = tiny.gradients(objective, variables.params, variables.extra, batch, ctx, slices, scale)
        return made.grads, made.value

    plain = jax.jit(lambda: tiny.gradients(objective, variables.params, variables.extra, batch, ctx, slices))()
    grads, value = run(jnp.float32(2**10))
    close((grads, value), (plain.grads, plain.value), 1e-6, "scaled ")


def test_float16_trains_like_float32_under_a_loss_scale():
    plain, state = make_run("causal_lm")[0](5)
    assert state.loss_scale is None
    half, state = make_run("causal_lm", model={"dtype": "float16"})[0](5)
    assert float(state.loss_scale["value"]) == 2**15 and int(state.loss_scale["good"]) == 5
    sliced, _ = make_run("causal_lm", (4, 1, 1), microbatches=2, model={"dtype": "float16"})[0](5)
    for a, b, c in zip(half, plain, sliced, strict=True):
        np.testing.assert_allclose([a["loss"], a["grad_norm"]], [b["loss"], b["grad_norm"]], rtol=2e-2)
        np.testing.assert_allclose([c["loss"], c["grad_norm"]], [b["loss"], b["grad_norm"]], rtol=2e-2)


def test_an_overflow_halves_the_scale_and_changes_nothing_else():
    _, born, step = make_run("causal_lm", model={"dtype": "float16"})
    jitted = jax.jit(step)
    state = born(0)
    state = state.replace(loss_scale={**state.loss_scale, "value": jnp.float32(2**40)})
    after, _ = jitted(state, tiny.batch())
    assert float(after.loss_scale["value"]) == 2**39 and int(after.guard["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    ready = born(0)
    ready = ready.replace(loss_scale={**ready.loss_scale, "good": jnp.int32(1999)})
    after, _ = jitted(ready, tiny.batch())
    assert float(after.loss_scale["value"]) == 2**16 and int(after.loss_scale["good"]) == 0


def test_small_gradients_need_the_scale():
    """The last stage of a deep float16 network: without a scale they are rounded to 0 (Micikevicius 2018, figure 3)."""
    objective = tiny.make("causal_lm", dtype="float16")
    variables, batch, ctx = arguments_of(objective)
    weak = dataclasses.replace(objective)
    loss = objective.loss

    def tiny_loss(*arguments):
        made = loss(*arguments)
        return made._replace(terms={k: (c * 1e-6, s, w) for k, (c, s, w) in made.terms.items()})

    object.__setattr__(weak, "loss", tiny_loss)

    def zeros(scale):
        made = jax.jit(lambda: tiny.gradients(weak, variables.params, variables.extra, batch, ctx, 1, scale))()
        kernels = made.grads["encoder"]["stack"]["layers"]["mlp"]["in"]["kernel"]
        return float(jnp.mean(kernels == 0))

    assert zeros(None) > 0.5 > zeros(jnp.float32(2**15))


class Owned(nn.Module):
    """A module with float16 activations that an objective makes in a method; no field of the objective holds it."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, dtype=jnp.float16)(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class WithOwned(type(tiny.make("simclr"))):
    def init(self, key, batch):
        made = super().init(key, batch)
        owned = Owned().init(key, jnp.zeros((1, self.projector.output)))["params"]
        return made._replace(params={**made.params, "owned": owned})

    def loss(self, params, extra, outputs, inputs, ctx):
        made = super().loss(params, extra, outputs, inputs, ctx)
        first = outputs["student"][:, 0, : self.projector.output]
        value = jnp.sum(jnp.square(Owned().apply({"params": params["owned"]}, first)))
        return made._replace(terms={**made.terms, "owned": (1e-3, value, jnp.float32(len(first)))})


def test_the_loss_scale_covers_every_module_of_an_objective():
    """A decoder, or a head that is made in a method, as well as the model."""
    plain = tiny.make("simclr")
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    decoder = objectives.create(
        {**tiny.config("mae"), "objective": {"name": "mae", "decoder": {"width": 32, "heads": 2, "dtype": "float16"}}},
        tiny.SPEC,
        tiny.STEPS,
    )
    for objective, scaled in [(plain, False), (WithOwned(**fields), True), (decoder, True)]:
        rule = optimizers.AdamW(learning_rate=1e-3)
        optimization = Optimization(rule, lambda step: 1.0, RunLengths(tiny.BATCH, 1000, None, tiny.STEPS))
        mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
        program = Program.build(objective, optimization, mesh, tiny.batch())
        state = program.init(0)
        assert (state.loss_scale is not None) == (program.shapes.loss_scale is not None) == scaled


def test_the_loss_scale_stays_finite_and_comes_back():
    scale = first_loss_scale()
    for _ in range(200):
        scale = update_loss_scale({**scale, "good": jnp.int32(1999)}, jnp.bool_(True))
    assert float(scale["value"]) == LARGEST_SCALE  # unbounded, it was infinite after 113 doublings
    infinite = {"value": jnp.float32(jnp.inf), "good": jnp.int32(0)}
    assert float(update_loss_scale(infinite, jnp.bool_(False))["value"]) == LARGEST_SCALE
    for _ in range(100):
        scale = update_loss_scale(scale, jnp.bool_(False))
    assert float(scale["value"]) == 1
    for _ in range(2000):
        scale = update_loss_scale(scale, jnp.bool_(True))
    assert float(scale["value"]) == 2 and int(scale["good"]) == 0


def test_sums_over_slices_are_kept_in_float32():
    """In bfloat16, 256 + 1 is 256."""
    total, rows = jax.jit(lambda x: _scan_sum(lambda x, shared: (x, x), x, None, ()))(jnp.ones(1000, jnp.bfloat16))
    assert float(total) == 1000 and total.dtype == rows.dtype == jnp.bfloat16
    objective = tiny.make("causal_lm", dtype="bfloat16")
    variables, batch, ctx = arguments_of(objective)
    traced = jax.make_jaxpr(lambda v: tiny.gradients(objective, v.params, v.extra, batch, ctx, 4))(variables)
    loops = [e for e in traced.jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == 4]
    for loop in loops:
        inner = loop.params["jaxpr"].out_avals  # what is stacked has one axis less inside
        carried = [v for v, aval in zip(loop.outvars, inner, strict=True) if v.aval.shape == aval.shape]
        assert carried and {v.aval.dtype for v in carried} == {jnp.dtype("float32")}
    assert loops


@pytest.mark.parametrize("name", daily(["simclr", "causal_lm"], 2))
def test_slices_in_bfloat16_agree_to_rounding(name):
    encoder = {"dtype": "bfloat16"}
    objective = tiny.make(name, **encoder)
    variables, batch, ctx = arguments_of(objective)
    one, four = (
        jax.jit(lambda v, k=k: tiny.gradients(objective, v.params, v.extra, batch, ctx, k))(variables) for k in (1, 4)
    )
    norm = lambda tree: float(optax.tree.norm(tree))  # noqa: E731
    difference = norm(jax.tree.map(jnp.subtract, one.grads, four.grads)) / norm(one.grads)
    assert 1e-4 < difference < 0.1
    np.testing.assert_allclose(four.value, one.value, rtol=1e-2)


def mesh_of(platform):
    """A mesh of one device of a platform."""
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]), size=1)


def test_deterministic_kernels_are_asked_for_on_gpus_only():
    assert compiler_options(mesh_of("gpu"), True) == {"xla_gpu_deterministic_ops": True}
    assert compiler_options(mesh_of("gpu"), False) is compiler_options(mesh_of("cpu"), True) is None
    assert compiler_options(mesh_of("tpu"), True) is None


def test_the_installed_xla_has_the_option_of_deterministic_kernels():
    """XLA refuses options that it does not know, on every platform."""
    options = compiler_options(mesh_of("gpu"), True)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_no_such_option": True})(1.0)
