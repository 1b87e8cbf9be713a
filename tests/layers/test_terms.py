"""A new position scheme needs one file and one registry line: tested with a scheme that only this file defines."""

import ast
import dataclasses
import inspect
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssljax.layers
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.arrangements import ARRANGEMENTS
from ssljax.layers.config import BlockConfig, NormPosition
from ssljax.layers.dense import parameter
from ssljax.layers.masks import Causal, Full, Given
from ssljax.layers.multihead import Cached, empty_cache
from ssljax.layers.positions import Layout
from ssljax.layers.stack import Stack
from ssljax.layers.terms import registry
from ssljax.layers.terms.base import Term

DEPTH, B, T, D, HEADS = 2, 2, 5, 8, 2
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
POSITIONS = jnp.asarray([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])


class Throwaway(Term):
    """cos(stack weight x distance of positions) x layer weight x mean of q, per head."""

    def prepare(self, stack, pairs):
        weight = parameter(stack, "throwaway", nn.initializers.ones, (None,), (1,), role="position")
        q_BxT, k_BxS = pairs.positions()
        return jnp.cos(weight * (k_BxS[:, None] - q_BxT[:, :, None]))

    def logits(self, attention, heads, state):
        shape = (self.config.heads,)
        weight_H = parameter(attention, "throwaway", nn.initializers.ones, ("heads",), shape, role="position")
        mean_BxHxT = jnp.mean(heads.q_BxTxHxK, axis=-1).transpose(0, 2, 1)
        return state[:, None] * weight_H[:, None, None] * mean_BxHxT[..., None]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(registry.BIASES.entries, "throwaway", f"{__name__}:Throwaway")
    return schema.build(BlockConfig, {"width": D, "heads": HEADS, "position_bias": "throwaway"}, "block")


def make(config):
    """Parameters of a stack, all moved away from their initial values."""
    params = nn.unbox(Stack(config, DEPTH).init(jax.random.key(0), X, Full()))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), params)


def brute_force(params, x, positions, allowed):
    """The stack in float64, one query and one key at a time."""

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def gelu(x):
        from scipy.special import erf

        return x * (1 + erf(x / np.sqrt(2))) / 2

    for i in range(DEPTH):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        a, h = p["attention"], norm(x, p["attention_norm"])
        q, k, v = (dense(h, a[name]).reshape(*x.shape[:2], HEADS, -1) for name in "qkv")
        y = np.zeros_like(q)
        for b, t, n in np.ndindex(*q.shape[:3]):
            logits = np.full(x.shape[1], -np.inf)
            for s in range(x.shape[1]):
                if allowed(t, s):
                    turn = np.cos(params["throwaway"][0] * (positions[b, s] - positions[b, t]))
                    logits[s] = q[b, t, n] @ k[b, s, n] / 2 + turn * a["throwaway"][n] * q[b, t, n].mean()
            weights = np.exp(logits - logits.max())
            y[b, t, n] = (weights / weights.sum()) @ v[b, :, n]
        x = x + dense(y.reshape(x.shape), a["out"])
        x = x + dense(gelu(dense(norm(x, p["mlp_norm"]), p["mlp"]["in"])), p["mlp"]["out"])
    return norm(x, params["norm"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scan", [True, False])
def test_a_new_scheme(config, scan, causal):
    """Values and gradients along a direction, scanned and unrolled."""
    params, mask = make(config), Causal() if causal else Full()
    stack = Stack(dataclasses.replace(config, scan=scan), DEPTH)
    probe = RNG.normal(size=X.shape)

    @jax.jit
    def run(params, x):
        out, _ = stack.apply({"params": params}, x, mask, Layout(POSITIONS))
        return jnp.vdot(out, probe.astype(np.float32)), out

    (_, out), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, X)

    def exact(params, x):
        return brute_force(params, x, np.asarray(POSITIONS), lambda t, s: s <= t or not causal)

    point = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, X))
    np.testing.assert_allclose(out, exact(*point), rtol=1e-4, atol=1e-4)
    way = jax.tree.map(lambda a: RNG.normal(size=a.shape), point)
    ends = [np.vdot(exact(*jax.tree.map(lambda a, d, e=e: a + e * d, point, way)), probe) for e in (1e-5, -1e-5)]
    slope = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way)))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-3)
    for tree in (grads[0], grads[0]["layers"]["attention"]):
        assert np.all(np.asarray(tree["throwaway"]) != 0), "the scheme learns, in the stack and in each layer"


def test_a_new_scheme_decodes_from_a_cache(config):
    """Decoding token by token, from another slot in each row, equals the pass over whole sequences."""
    params, stack = make(config), Stack(config, DEPTH)
    want, _ = stack.apply({"params": params}, X, Causal())
    cache, lengths = empty_cache(config, DEPTH, B, T), [2, 3]
    _, out = stack.apply({"params": params}, X[:, :3], Causal(), cached=Cached(cache))
    cache = out.cache
    for step in range(2):
        start = jnp.asarray(lengths) + step
        x = jnp.take_along_axis(X, jnp.minimum(start, T - 1)[:, None, None], axis=1)
        layout = Layout(start[:, None])
        got, out = stack.apply({"params": params}, x, Full(), layout, cached=Cached(cache, start))
        cache = out.cache
        for row in range(B):
            np.testing.assert_allclose(got[row, 0], want[row, int(start[row])], atol=2e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_the_unrolled_form_has_no_loop(config, scan):
    stack = Stack(dataclasses.replace(config, scan=scan), DEPTH)
    run = jax.jit(lambda params: jax.grad(lambda p: jnp.sum(stack.apply({"params": p}, X, Full())[0]))(params))
    assert ("while(" in run.lower(make(config)).compile().as_text()) == scan


def test_masks_of_fewer_keys_mean_the_first_tokens(config):
    """Queries after the last key attend to the keys, and no query attends to them (the two streams of XLNet)."""
    params, stack = make(config), Stack(config, 1)
    one = {**params, "layers": jax.tree.map(lambda leaf: leaf[:1], params["layers"])}
    narrow = Given(jnp.ones((1, 1, T, 3), bool))
    wide = Given(jnp.ones((1, 1, T, T), bool).at[..., 3:].set(False))
    got, want = (stack.apply({"params": one}, X, mask)[0] for mask in (narrow, wide))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_names_are_checked_and_classes_can_be_given_by_path():
    values = {"width": D, "heads": HEADS}
    for name, message in [
        (
            "alibbi",
            r"block.position_bias: unknown position bias 'alibbi'; did you mean 'alibi'\? \(known: alibi, grid, ",
        ),
        (3, "block.position_bias: got 3"),
    ]:
        with pytest.raises(UserError, match=message):
            schema.build(BlockConfig, {**values, "position_bias": name}, "block")
    by_path = schema.build(BlockConfig, {**values, "position_bias": f"{__name__}:Throwaway"}, "block")
    assert isinstance(registry.terms_of(by_path)[0], Throwaway)
    assert schema.build(BlockConfig, {**values, "position_bias": None}, "block").position_bias == "none"


def test_arrangements_cover_the_norm_positions():
    assert tuple(ARRANGEMENTS) == NormPosition.__args__


def words(file):
    """String literals of a file (without docstrings), and its identifiers and imported modules."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts, identifiers = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            texts.add(node.value)
        elif isinstance(node, ast.Name):
            identifiers.add(node.id)
        elif isinstance(node, ast.Attribute):
            identifiers.add(node.attr)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            identifiers |= {getattr(node, "module", None), *(alias.name for alias in node.names)}
    return texts, identifiers


def test_no_file_of_layers_names_a_scheme_but_its_own():
    """No other file mentions its name, class, module or keys; the registry is the only list."""
    root = pathlib.Path(ssljax.layers.__file__).parent
    schemes = {**registry.BIASES.entries, **registry.GROUPS.entries}
    del schemes["none"]
    keys = {field.name for field in dataclasses.fields(registry.TermKeys)} - {"position_bias"}
    files = {name: pathlib.Path(inspect.getfile(registry.BIASES.get(path))) for name, path in schemes.items()}
    assert len(set(files.values())) == len(schemes), "one file per scheme"
    found = []
    for file in set(root.rglob("*.py")) - {root / "terms" / "registry.py"}:
        texts, identifiers = words(file)
        for name, path in schemes.items():
            if file != files[name]:
                found += [(file.name, word) for word in set(path.split(":")) & identifiers]
        if file not in files.values():  # a parameter may have the name of another scheme
            found += [(file.name, word) for word in (set(schemes) & texts) | (keys & identifiers)]
    assert not found, found
