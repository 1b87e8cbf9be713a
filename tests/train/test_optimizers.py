"""Optimisers against float64 transcriptions of their papers, scanned against unrolled, patterns, freezing, axes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import parallel
from ssljax.base import schema
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError
from ssljax.layers.roles import EFFECTS, ParameterAxes
from ssljax.train import optimizers
from ssljax.train.optimizers import REGISTRY, clip_by_global_norm

LAYERS, EXPERTS = 3, 2
SHAPES = {
    "embed": {"embedding": (5, 4)},
    "position": (6, 4),
    "layers": {
        "mlp": {"kernel": (LAYERS, 4, 6), "bias": (LAYERS, 6)},
        "experts": {"kernel": (LAYERS, EXPERTS, 4, 3), "bias": (LAYERS, EXPERTS, 3)},
        "norm": {"scale": (LAYERS, 4)},
    },
    "norm": {"scale": (4,)},
    "head": {"kernel": (4, 7), "bias": (7,)},
}
HEIGHTS = (3, 2, 1)  # of the blocks; embeddings have height 4


def layer_axes(role, *names):
    return ParameterAxes(("layers", *names), role, HEIGHTS)


AXES = {
    "embed": {"embedding": ParameterAxes(("vocab", "embed"), "embedding", 4)},
    "position": ParameterAxes(("positions", "embed"), "position", 4),
    "layers": {
        "mlp": {"kernel": layer_axes("matrix", "embed", "mlp"), "bias": layer_axes("bias", "mlp")},
        "experts": {
            "kernel": layer_axes("matrix", "experts", "embed", "mlp"),
            "bias": layer_axes("bias", "experts", "mlp"),
        },
        "norm": {"scale": layer_axes("norm", "embed")},
    },
    "norm": {"scale": ParameterAxes(("embed",), "norm")},
    "head": {"kernel": ParameterAxes(("embed", "classes"), "head"), "bias": None},
}
RATES = (0.02, 0.05, 0.01)  # a changing rate, so that momentum before and after it differ


def is_axes(x):
    return x is None or isinstance(x, tuple)


def random_tree(seed, shapes=SHAPES):
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(seed)
    # Layers and leaves have different magnitudes, so a norm over the wrong axes changes the result.
    draw = [rng.normal(size=s) * 10.0 ** rng.uniform(-1, 1, size=s[:1] + (1,) * (len(s) - 1)) for s in leaves]
    return jax.tree.unflatten(treedef, [jnp.asarray(x, jnp.float32) for x in draw])


PARAMS = random_tree(0)
GRADS = [random_tree(1 + i) for i in range(len(RATES))]


def unroll(tree, axes=AXES):
    """A copy of the tree with layers/x -> block_i/x, and a separate leaf for each expert."""
    out = {k: v for k, v in tree.items() if k != "layers"}
    for i in range(LAYERS):
        block = jax.tree.map(lambda x, i=i: x[i], tree["layers"])
        experts = block.pop("experts")
        block["experts"] = {f"expert{e}": jax.tree.map(lambda x, e=e: x[e], experts) for e in range(EXPERTS)}
        out[f"block_{i}"] = block
    return out


def unrolled_axes():
    """The axes of `unroll(PARAMS)`: a block has the height of its layer, and an expert no axis."""
    out = {k: v for k, v in AXES.items() if k != "layers"}
    for i, height in enumerate(HEIGHTS):
        one = lambda axes, height=height: ParameterAxes(  # noqa: E731
            tuple(name for name in axes if name not in ("layers", "experts")), axes.role, height
        )
        block = jax.tree.map(one, AXES["layers"], is_leaf=is_axes)
        experts = block.pop("experts")
        block["experts"] = {f"expert{e}": experts for e in range(EXPERTS)}
        out[f"block_{i}"] = block
    return out


def train(optimizer, axes, params, grads, rates=RATES, start=0):
    bound = optimizer.bind(axes, params, RunLengths(batch_size=4, dataset_size=8))
    state = bound.init(params)
    update = jax.jit(bound.update)
    for i, (g, lr) in enumerate(zip(grads, rates)):
        updates, state = update(g, state, params, jnp.float32(lr), jnp.int32(start + i))
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, rtol, atol=0.0):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


# -- against the papers ------------------------------------------------------------------------------------------


def norm(x):
    return np.sqrt((x**2).sum())


def newton_schulz(x):
    x, wide = (x.T, True) if x.shape[0] > x.shape[1] else (x, False)
    x = x / norm(x)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x.T if wide else x


def adam_direction(g, s, t, b1, b2, eps):
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    return s["m"] / (1 - b1**t) / (np.sqrt(s["v"] / (1 - b2**t)) + eps)


def ref_adamw(o, p, g, s, t, lr, wd, kind):
    return p - lr * (adam_direction(g, s, t, o.b1, o.b2, o.eps) + wd * p)


def ref_sgd(o, p, g, s, t, lr, wd, kind):
    g = g + wd * p
    s["v"] = o.momentum * s.get("v", 0) + g
    return p - lr * (g + o.momentum * s["v"] if o.nesterov else s["v"])


def ref_lars(o, p, g, s, t, lr, wd, kind):
    u = g + wd * p
    trust = 1.0 if kind == "vector" else o.trust * norm(p) / norm(u)
    s["v"] = o.momentum * s.get("v", 0) + lr * trust * u
    return p - s["v"]


def ref_lamb(o, p, g, s, t, lr, wd, kind):
    u = adam_direction(g, s, t, o.b1, o.b2, o.eps) + wd * p
    return p - lr * (1.0 if kind == "vector" else norm(p) / norm(u)) * u


def ref_lion(o, p, g, s, t, lr, wd, kind):
    m = s.get("m", np.zeros_like(p))
    s["m"] = o.b2 * m + (1 - o.b2) * g
    return p - lr * (np.sign(o.b1 * m + (1 - o.b1) * g) + wd * p)


def ref_adafactor(o, p, g, s, t, lr, wd, kind):
    beta = 1 - t**-o.decay_rate
    square = g**2 + 1e-30
    if p.ndim == 2 and min(p.shape) >= o.min_factor_dim:
        s["r"] = beta * s.get("r", 0) + (1 - beta) * square.mean(1)
        s["c"] = beta * s.get("c", 0) + (1 - beta) * square.mean(0)
        v = np.outer(s["r"], s["c"]) / s["r"].mean()
    else:
        v = s["v"] = beta * s.get("v", 0) + (1 - beta) * square
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u**2).mean()) / o.clip_rms)
    u = u * max(1e-3, np.sqrt((p**2).mean()))
    return p - lr * (u + wd * p)


def ref_muon(o, p, g, s, t, lr, wd, kind):
    if kind != "matrix":
        return ref_adamw(o, p, g, s, t, lr, wd, kind)
    b = o.momentum
    s["m"] = b * s.get("m", 0) + (1 - b) * g
    look_ahead = b * s["m"] / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
    fan_in, fan_out = p.shape
    size = 0.2 * np.sqrt(max(p.shape)) if o.scale == "rms" else np.sqrt(max(1, fan_out / fan_in))
    return p - lr * (size * newton_schulz(look_ahead) + wd * p)


CASES = {
    "adamw": (optimizers.AdamW(weight_decay=0.1), ref_adamw),
    "sgd": (optimizers.SGD(weight_decay=0.1), ref_sgd),
    "sgd-nesterov": (optimizers.SGD(weight_decay=0.1, nesterov=True), ref_sgd),
    "lars": (optimizers.LARS(weight_decay=0.1, trust=0.02), ref_lars),
    "lamb": (optimizers.LAMB(weight_decay=0.1), ref_lamb),
    "lion": (optimizers.Lion(weight_decay=0.1), ref_lion),
    "adafactor": (optimizers.Adafactor(weight_decay=0.1), ref_adafactor),
    "adafactor-factored": (optimizers.Adafactor(weight_decay=0.1, min_factor_dim=3), ref_adafactor),
    "muon": (optimizers.Muon(weight_decay=0.1), ref_muon),
    "muon-spectral": (optimizers.Muon(weight_decay=0.1, scale="spectral"), ref_muon),
}


@pytest.mark.parametrize("name", CASES)
def test_update_rule_matches_its_definition(name):
    optimizer, reference = CASES[name]
    # One leaf at a time in NumPy: nothing is stacked there.
    found, _ = train(optimizer, AXES, PARAMS, GRADS)
    start = jax.tree.map(lambda x: np.asarray(x, np.float64), unroll(PARAMS))
    grads = [jax.tree.map(lambda x: np.asarray(x, np.float64), unroll(g)) for g in GRADS]
    flat, treedef = jax.tree_util.tree_flatten_with_path(start)
    expected = []
    for j, (keys, p) in enumerate(flat):
        path = jax.tree_util.keystr(keys)
        kind = (
            "vector" if p.ndim < 2 else "other" if any(w in path for w in ("embed", "position", "head")) else "matrix"
        )
        wd = 0.0 if p.ndim < 2 or "position" in path else optimizer.weight_decay
        memory = {}
        for t, lr in enumerate(RATES, 1):
            p = reference(optimizer, p, jax.tree.leaves(grads[t - 1])[j], memory, t, lr, wd, kind)
        expected.append(p)
    assert_close(unroll(found), treedef.unflatten(expected), rtol=2e-5, atol=2e-6)


def test_every_registered_optimizer_has_a_reference():
    assert {name.split("-")[0] for name in CASES} == set(REGISTRY)


def test_adafactor_agrees_with_optax_on_plain_leaves():
    params, grads = unroll(PARAMS), [unroll(g) for g in GRADS]
    ours, _ = train(optimizers.Adafactor(min_factor_dim=3, momentum=0.9), unrolled_axes(), params, grads, (0.1,) * 3)
    theirs = optax.adafactor(0.1, min_dim_size_to_factor=3, momentum=0.9)

    @jax.jit
    def step(params, state, g):
        updates, state = theirs.update(g, state, params)
        return optax.apply_updates(params, updates), state

    state = theirs.init(params)
    for g in grads:
        params, state = step(params, state, g)
    assert_close(ours, params, rtol=1e-5, atol=1e-6)


def test_muon_updates_are_nearly_orthogonal_per_layer_and_expert():
    optimizer = optimizers.Muon(weight_decay=0.0, scale="spectral")
    bound = optimizer.bind(AXES, PARAMS)
    updates, _ = jax.jit(bound.update)(GRADS[0], bound.init(PARAMS), PARAMS, 1.0, 0)
    values = np.linalg.svd(updates["layers"]["experts"]["kernel"], compute_uv=False)
    assert values.shape == (LAYERS, EXPERTS, 3)
    assert np.all((values > 0.3) & (values < 1.3)), values


# -- a scanned leaf is L leaves ----------------------------------------------------------------------------------

SCANNED = {
    "adafactor": {"min_factor_dim": 3, "momentum": 0.9},
    "lars": {"trust": 0.02},
}


@pytest.mark.parametrize("name", REGISTRY)
def test_scanned_layers_train_as_unrolled_layers(name):
    optimizer = schema.build_named(
        REGISTRY,
        {
            "name": name,
            "weight_decay": 0.1,
            "layer_decay": 0.6,
            "lr_multipliers": [("head/bias", 3.0), ("mlp/kernel", 0.5)],
            "wd_multipliers": [("experts", 2.0), ("scale$", 0.5)],
            "freeze": [("mlp", 1)],
            **SCANNED.get(name, {}),
        },
        "optimizer",
    )
    scanned, _ = train(optimizer, AXES, PARAMS, GRADS)
    unrolled, _ = train(optimizer, unrolled_axes(), unroll(PARAMS), [unroll(g) for g in GRADS])
    assert jax.tree.structure(unroll(scanned)) == jax.tree.structure(unrolled)
    # The change of the parameters is compared: a wrong update would be small relative to the parameters.
    learned = jax.tree.map(jnp.subtract, unroll(scanned), unroll(PARAMS))
    expected = jax.tree.map(jnp.subtract, unrolled, unroll(PARAMS))
    assert_close(learned, expected, rtol=2e-4, atol=2e-6)


def test_unnamed_parameters_in_a_scanned_stack_are_refused():
    axes = {**AXES, "layers": {**AXES["layers"], "norm": {"scale": ()}}}
    with pytest.raises(ValueError, match=r"layers/norm/scale: .*needs logical axis names"):
        optimizers.AdamW().bind(axes, PARAMS)
    # A plain array next to a stack is not one of its layers, even with the same length.
    alone = {"stack": AXES["layers"], "mine": ()}
    optimizers.AdamW().bind(alone, {"stack": PARAMS["layers"], "mine": jnp.ones((LAYERS, 2))})
    with pytest.raises(ValueError, match="do not fit the shape"):
        optimizers.AdamW().bind({**AXES, "position": ("positions",)}, PARAMS)


# -- layer-wise decay, multipliers, freezing ---------------------------------------------------------------------


def test_layer_decay_counts_depths_from_the_embedding_to_the_head():
    leaves = optimizers.AdamW(layer_decay=0.5).bind(AXES, PARAMS).leaves
    blocks = np.array([0.125, 0.25, 0.5])  # K = 4: block i has depth i + 1
    assert leaves["embed/embedding"].lr == leaves["position"].lr == 0.0625
    np.testing.assert_array_equal(leaves["layers/mlp/kernel"].lr, blocks.reshape(3, 1, 1))
    np.testing.assert_array_equal(leaves["layers/experts/kernel"].lr, blocks.reshape(3, 1, 1, 1))
    assert leaves["norm/scale"].lr == leaves["head/kernel"].lr == 1.0


def test_decay_defaults_and_the_first_pattern_wins():
    leaves = optimizers.AdamW(wd_multipliers=(("embed/", 0.5), ("embed", 9.0), ("norm", 1.0))).bind(AXES, PARAMS).leaves
    assert {path: leaf.wd for path, leaf in leaves.items()} == {
        "embed/embedding": 0.5,
        "position": 0.0,
        "layers/mlp/kernel": 1.0,
        "layers/mlp/bias": 0.0,
        "layers/experts/kernel": 1.0,
        "layers/experts/bias": 0.0,
        "layers/norm/scale": 1.0,
        "norm/scale": 1.0,
        "head/kernel": 1.0,
        "head/bias": 0.0,
    }


@pytest.mark.parametrize("role", EFFECTS)
def test_effects_of_a_role(role):
    """Weight decay, Muon's set and trust ratios follow from the role alone, not from names or ranks."""
    decays, orthogonal, trust = {
        "matrix": (True, True, True),
        "head": (True, False, True),
        "embedding": (True, False, True),
        "position": (False, False, True),
        "token": (False, False, False),
        "bias": (False, False, False),
        "norm": (False, False, False),
        "scale": (False, False, False),
    }[role]
    params = {"head_position_token": jnp.full((4, 3), 10.0)}
    axes = {"head_position_token": ParameterAxes(("vocab", "embed"), role)}
    grads = {"head_position_token": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}

    def update(optimizer):
        bound = optimizer.bind(axes, params)
        return bound.update(grads, bound.init(params), params, 1.0, 0)[0]["head_position_token"]

    plain, decayed = (update(optimizers.AdamW(weight_decay=wd)) for wd in (0.0, 0.1))
    np.testing.assert_allclose(decayed - plain, -1.0 * decays, atol=1e-5)
    values = np.linalg.svd(update(optimizers.Muon(weight_decay=0.0, scale="spectral")), compute_uv=False)
    assert (values.max() / values.min() < 3) == orthogonal, values
    scaled = update(optimizers.LAMB(weight_decay=0.0))
    np.testing.assert_allclose(jnp.abs(scaled), 10.0 if trust else 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", REGISTRY)
def test_frozen_is_bitwise_unchanged_and_has_no_state(name):
    optimizer = REGISTRY.get(name)(weight_decay=0.1, lr_multipliers=(("^layers/", 0.0),))
    # An update of +0.0 would change a parameter of -0.0.
    params = {**PARAMS, "layers": jax.tree.map(lambda x: x.at[0].set(-0.0), PARAMS["layers"])}
    bound = optimizer.bind(AXES, params)
    new, state = train(optimizer, AXES, params, GRADS)
    for before, after in zip(jax.tree.leaves(params["layers"]), jax.tree.leaves(new["layers"])):
        np.testing.assert_array_equal(np.asarray(before).view(np.uint32), np.asarray(after).view(np.uint32))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(params["head"]), jax.tree.leaves(new["head"])))
    assert not any("layers" in jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(state))
    trainable = bound.trainable(GRADS[0])
    assert all(not np.any(g) for g in jax.tree.leaves(trainable["layers"]))
    np.testing.assert_array_equal(trainable["head"]["kernel"], GRADS[0]["head"]["kernel"])


@pytest.mark.parametrize("name", REGISTRY)
def test_freeze_holds_bitwise_until_its_step(name):
    optimizer = REGISTRY.get(name)(weight_decay=0.1, freeze=(("head", "1 epoch"),))  # 8 examples by 4: two steps
    params = {**PARAMS, "head": {**PARAMS["head"], "bias": jnp.full((7,), -0.0)}}
    held, _ = train(optimizer, AXES, params, GRADS[:2])
    np.testing.assert_array_equal(held["head"]["kernel"], PARAMS["head"]["kernel"])
    assert np.all(np.signbit(held["head"]["bias"]))  # an update of +0.0 would have made it +0.0
    assert np.any(held["embed"]["embedding"] != PARAMS["embed"]["embedding"])
    free, _ = train(optimizer, AXES, PARAMS, GRADS)
    assert np.any(free["head"]["kernel"] != PARAMS["head"]["kernel"])
    # A resumed run counts with its own step, not from the optimiser's first update.
    later, _ = train(optimizer, AXES, PARAMS, GRADS[:1], start=2)
    assert np.any(later["head"]["kernel"] != PARAMS["head"]["kernel"])


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["lr_multipliers", "wd_multipliers", "freeze"])
def test_pattern_without_a_parameter_is_an_error(field):
    with pytest.raises(UserError, match=rf"optimizer\.{field}: 'haed' matches no parameter \(there are 10: .*embed"):
        optimizers.AdamW(**{field: (("haed", 0),)}).bind(AXES, PARAMS)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr_multipliers": [["head", -1.0]]}, r"optimizer\.lr_multipliers\.head: got -1.0, must be >= 0"),
        ({"wd_multipliers": [("(", 1.0)]}, r"optimizer\.wd_multipliers: '\(' is not a regular expression"),
        ({"freeze": [("head", "1 epok")]}, r"optimizer\.freeze\.head: got '1 epok', must be an integer"),
        ({"learning_rate": 0}, r"optimizer\.learning_rate: got 0.0, must be > 0"),
        ({"layer_decay": 1.5}, r"optimizer\.layer_decay: got 1.5, must be <= 1"),
        ({"lerning_rate": 1}, r"optimizer\.lerning_rate: unknown key; did you mean 'learning_rate'"),
    ],
)
def test_impossible_settings_name_their_key(values, message):
    with pytest.raises(UserError, match=message):
        schema.build_named(REGISTRY, {"name": "adamw", **values}, "optimizer")


def test_layer_decay_needs_layers_and_freeze_needs_lengths():
    plain = {"head": jnp.ones((2, 2))}
    with pytest.raises(UserError, match=r"optimizer\.layer_decay: got 0\.5, but the model has no layers"):
        optimizers.AdamW(layer_decay=0.5).bind({"head": None}, plain)
    with pytest.raises(UserError, match=r"optimizer\.freeze\.head: got '1 epoch', but the size of the dataset"):
        optimizers.AdamW(freeze=(("head", "1 epoch"),)).bind({"head": None}, plain, RunLengths(batch_size=4))
    with pytest.raises(ValueError, match="needs lengths"):
        optimizers.AdamW(freeze=(("head", "1 epoch"),)).bind({"head": None}, plain)


def test_settings_survive_the_config():
    for name in REGISTRY:
        values = {"name": name, "lr_multipliers": [("a.*/b", 0.5)], "freeze": [("x", "5%")], "lr_per": 256}
        built = schema.build_named(REGISTRY, values, "optimizer")
        assert built.lr_multipliers == (("a.*/b", 0.5),) and built.freeze == (("x", "5%"),)
        assert schema.build_named(REGISTRY, schema.to_dict(built), "optimizer") == built
        assert built.total_dependent and not dataclasses.replace(built, freeze=(("x", 5),)).total_dependent


# -- inside the step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY)
def test_state_axes_describe_the_state(name):
    settings = {"min_factor_dim": 3, "momentum": 0.9} if name == "adafactor" else {}
    bound = REGISTRY.get(name)(lr_multipliers=(("position", 0.0),), **settings).bind(AXES, PARAMS)
    shapes = jax.eval_shape(bound.init, PARAMS)
    axes = bound.state_axes()
    assert jax.tree.structure(shapes) == jax.tree.structure(axes, is_leaf=lambda x: type(x) is tuple and is_name(x))
    parameters = {tuple(s.shape): a for s, a in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(AXES, is_leaf=is_axes))}
    for (path, shape), names in zip(
        jax.tree_util.tree_leaves_with_path(shapes),
        jax.tree.leaves(axes, is_leaf=lambda x: type(x) is tuple and is_name(x)),
    ):
        assert len(names) == len(shape.shape) or names == (), path
        factored = jax.tree_util.keystr(path).endswith(("v_row", "v_col"))  # which may look like another parameter
        if shape.shape in parameters and len(shape.shape) > 1 and not factored:
            assert names == parameters[shape.shape], path
        if shape.shape[:1] == (LAYERS,) and len(shape.shape) > 1:
            assert names[0] == "layers", path


def is_name(x):
    return all(n is None or isinstance(n, str) for n in x)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_sharded_update_equals_the_local_one(name):
    settings = {"min_factor_dim": 3, "momentum": 0.9} if name == "adafactor" else {}
    optimizer = REGISTRY.get(name)(weight_decay=0.1, **settings)
    axes, start, *slopes = (
        {"embed": tree["embed"], "layers": {"mlp": tree["layers"]["mlp"]}} for tree in (AXES, PARAMS, *GRADS[:2])
    )
    bound = optimizer.bind(axes, start)
    mesh = parallel.make_mesh(parallel.MeshConfig(2, 2, 2))
    places = parallel.shardings(axes, start, mesh)
    state_places = parallel.shardings(bound.state_axes(), jax.eval_shape(bound.init, start), mesh)
    assert not places["layers"]["mlp"]["kernel"].is_fully_replicated
    if name != "adafactor":  # its moments of matrices are rows and columns
        assert any(not place.is_fully_replicated for place in jax.tree.leaves(state_places))

    params, grads = jax.device_put(start, places), [jax.device_put(g, places) for g in slopes]
    state = jax.jit(bound.init, out_shardings=state_places)(params)
    update = jax.jit(bound.update, out_shardings=(places, state_places))
    for step, (g, lr) in enumerate(zip(grads, RATES)):
        updates, state = update(g, state, params, lr, step)
        params = jax.jit(optax.apply_updates, out_shardings=places)(params, updates)
    local, _ = train(optimizer, axes, start, slopes)
    assert_close(params, local, rtol=1e-4, atol=1e-5)


def test_rates_and_decays_may_be_traced_and_stacked():
    optimizer = optimizers.LAMB(layer_decay=0.7)
    rates, decays = jnp.array([0.01, 0.1]), jnp.array([0.0, 0.3])

    def two_steps(learning_rate, weight_decay):
        mine = dataclasses.replace(optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
        bound = mine.bind(AXES, PARAMS)
        params, state = PARAMS, bound.init(PARAMS)
        for step, g in enumerate(GRADS[:2]):
            updates, state = bound.update(g, state, params, mine.peak_learning_rate(4), step)
            params = optax.apply_updates(params, updates)
        return params

    both = jax.jit(jax.vmap(two_steps))(rates, decays)
    for i in range(2):
        alone, _ = train(
            dataclasses.replace(optimizer, weight_decay=float(decays[i])), AXES, PARAMS, GRADS[:2], [rates[i]] * 2
        )
        assert_close(jax.tree.map(lambda x, i=i: x[i], both), alone, rtol=1e-5, atol=1e-6)


def test_peak_learning_rate_grows_with_the_batch():
    assert optimizers.LARS(learning_rate=0.3, lr_per=256).peak_learning_rate(4096) == pytest.approx(4.8)
    assert optimizers.LARS(learning_rate=0.3).peak_learning_rate(4096) == 0.3


def test_clip_by_global_norm():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped, before = clip_by_global_norm(grads, 1.0)
    assert before == 5.0 and before.dtype == jnp.float32
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-6)
    for limit in (5.0, 6.0, None):
        same, before = clip_by_global_norm(grads, limit)
        assert before == 5.0
        np.testing.assert_array_equal(same["a"], grads["a"])
    zero, before = clip_by_global_norm(jax.tree.map(jnp.zeros_like, grads), 1.0)
    assert before == 0 and not np.any(zero["a"])
    _, before = clip_by_global_norm({"a": jnp.array([jnp.nan, 1.0])}, 1.0)
    assert not np.isfinite(before)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_first_moments_may_be_stored_in_bfloat16(name):
    """The only arrays of the state whose type changes are momenta; updates stay near those of float32."""
    more = {"momentum": 0.9} if name == "adafactor" else {}
    params, rule = random_tree(0), REGISTRY.get(name)
    bound, narrow = (rule(moment_dtype=t, **more).bind(AXES, params) for t in ("float32", "bfloat16"))
    state, small = bound.init(params), narrow.init(params)
    for step in range(2):
        grads = random_tree(step + 1)
        wide_updates, state = bound.update(grads, state, params, 0.01, step)
        updates, small = narrow.update(grads, small, params, 0.01, step)
    changed = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(small), strict=True)
        if a.dtype != b.dtype
    ]
    assert changed and not any(".nu" in path or ".v" in path for path in changed)
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
    if name != "lion":  # its updates are signs
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(wide_updates), strict=True):
            assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b)


def test_a_bfloat16_moment_is_that_of_adam_rounded_to_nearest():
    """m <- round(b1 m + (1 - b1) g) after each step; the update reads the value before it is rounded."""
    b1, b2, eps, lr = 0.9, 0.999, 1e-8, 0.01
    gradients = np.random.default_rng(0).normal(size=(3, 7))
    shape = {"kernel": jnp.zeros((7,))}
    bound = REGISTRY.get("adamw")(weight_decay=0.0, moment_dtype="bfloat16").bind({"kernel": None}, shape)
    state, m, v = bound.init(shape), np.zeros(7), np.zeros(7)
    for t, g in enumerate(gradients, start=1):
        updates, state = bound.update({"kernel": jnp.float32(g)}, state, shape, lr, t)
        exact, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        expected = -lr * exact / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=2e-5)
        m = np.float64(np.asarray(exact, jnp.bfloat16))
