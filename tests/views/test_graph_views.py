"""Views of graphs: exact counts, and rates on large samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.base.schema import build_named

N, DRAWS = 10, 4000
SIZES = (7, 10, 1)


def path(n):
    """A path 0 - 1 - ... - n-1 with a chord (0, 2), padded."""
    a = np.zeros((N, N), bool)
    for i in range(n - 1):
        a[i, i + 1] = a[i + 1, i] = True
    if n > 2:
        a[0, 2] = a[2, 0] = True
    return a


def graphs(n=7, draws=DRAWS):
    """`draws` copies of a path with a chord, and their keys."""
    x = np.zeros((N, 3), np.float32)
    x[np.arange(n), np.arange(n) % 3] = 1
    one = {"nodes": x, "adjacency": path(n), "node_mask": np.arange(N) < n}
    return views.example_keys(jax.random.key(0), draws), {k: jnp.asarray(np.stack([v] * draws)) for k, v in one.items()}


def run(name, ratio, n=7, draws=DRAWS):
    keys, made = graphs(n, draws)
    return jax.tree.map(np.asarray, jax.jit(getattr(views, name), static_argnums=2)(keys, made, ratio))


def check_padding(made):
    """Asserts that nodes that are left out have neither features nor edges, and that edges are symmetric, no loops."""
    mask, edges = made["node_mask"], made["adjacency"]
    assert not made["nodes"][~mask].any()
    assert not (edges & ~(mask[:, :, None] & mask[:, None, :])).any()
    assert (edges == edges.swapaxes(1, 2)).all() and not edges[:, np.arange(N), np.arange(N)].any()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.7])
def test_dropped_nodes(n, ratio):
    made = run("drop_nodes", ratio, n)
    check_padding(made)
    gone = int(ratio * n + 1e-9)
    assert (made["node_mask"].sum(1) == n - gone).all()
    np.testing.assert_allclose(made["node_mask"].mean(0)[:n], 1 - gone / n, atol=0.04)  # every node equally often
    for i in range(50):  # what is kept is unchanged
        kept = made["node_mask"][i]
        assert (made["adjacency"][i] == (path(n) & kept[:, None] & kept)).all()
        assert (made["nodes"][i][kept] == np.asarray(graphs(n, 1)[1]["nodes"])[0][kept]).all()


def test_pairs_of_nodes_are_dropped_equally_often():
    gone = ~run("drop_nodes", 0.3)["node_mask"][:, :7]  # 2 of 7
    both = gone.T.astype(float) @ gone / DRAWS
    np.testing.assert_allclose(both[~np.eye(7, dtype=bool)], 2 / 7 * 1 / 6, atol=0.015)


@pytest.mark.parametrize("n", SIZES)
def test_perturbed_edges(n):
    made = run("perturb_edges", 0.2, n)
    check_padding(made)
    edges, pairs = path(n), np.triu(np.ones((N, N), bool), 1)
    rate = made["adjacency"].mean(0)
    e = edges[pairs].sum()
    free = n * (n - 1) // 2 - e
    inside = (np.arange(N) < n)[:, None] & (np.arange(N) < n)
    np.testing.assert_allclose(rate[edges], 0.8, atol=0.03)
    if free:
        np.testing.assert_allclose(rate[pairs & inside & ~edges], 0.2 * e / free, atol=0.03)
    number = made["adjacency"][:, pairs].sum(1)
    assert abs(number.mean() - e) < 0.1  # as many are added as are dropped
    # Pairs change independently of each other.
    changed = (made["adjacency"] != edges)[:, pairs & inside].astype(float)
    if changed.shape[1] > 1:
        correlation = np.corrcoef(changed.T)
        assert np.abs(correlation[~np.eye(len(correlation), dtype=bool)]).max() < 0.08
    assert (made["node_mask"].sum(1) == n).all()


def test_edges_of_a_complete_graph_are_only_dropped():
    keys, made = graphs(4)
    full = np.zeros((N, N), bool)
    full[:4, :4] = ~np.eye(4, dtype=bool)
    out = jax.jit(views.perturb_edges)(keys, {**made, "adjacency": jnp.asarray(np.stack([full] * DRAWS))}, 0.5)
    check_padding(jax.tree.map(np.asarray, out))
    np.testing.assert_allclose(np.asarray(out["adjacency"]).mean(0)[full], 0.5, atol=0.03)


@pytest.mark.parametrize("n", SIZES)
def test_masked_attributes(n):
    made, before = run("mask_attributes", 0.3, n), np.asarray(graphs(n, 1)[1]["nodes"])[0]
    mean = before[:n].mean(0)
    hidden = (made["nodes"] != before).any(-1)
    assert (hidden.sum(1) == int(0.3 * n)).all() and not hidden[:, n:].any()
    np.testing.assert_allclose(hidden.mean(0)[:n], int(0.3 * n) / n, atol=0.04)
    np.testing.assert_allclose(made["nodes"][hidden], np.broadcast_to(mean, (hidden.sum(), 3)), rtol=1e-6)
    assert (made["adjacency"] == path(n)).all() and (made["node_mask"].sum(1) == n).all()


def subsets(n, size):
    """{set of nodes: probability} of the walk, by enumeration of all its steps."""
    found = {frozenset([v]): 1 / n for v in range(n)}
    for _ in range(size - 1):
        grown = {}
        for inside, p in found.items():
            near = {u for v in inside for u in range(n) if path(n)[v, u]} - inside
            for u in near:
                key = inside | {u}
                grown[key] = grown.get(key, 0) + p / len(near)
            if not near:
                grown[inside] = grown.get(inside, 0) + p
        found = grown
    return found


@pytest.mark.parametrize("n, ratio", [(7, 0.2), (7, 0.6), (10, 0.5), (1, 0.5)])
def test_subgraphs(n, ratio):
    made = run("subgraph", ratio, n)
    check_padding(made)
    want = subsets(n, n - int(ratio * n))
    keys, counts = np.unique(made["node_mask"], axis=0, return_counts=True)
    found = {frozenset(np.flatnonzero(key).tolist()): count / DRAWS for key, count in zip(keys, counts)}
    assert set(found) == set(want)
    for key, p in want.items():
        assert abs(found[key] - p) < 0.03


def test_a_subgraph_ends_with_its_component():
    keys, made = graphs(6)
    edges = np.zeros((N, N), bool)
    edges[0, 1] = edges[1, 0] = True  # nodes 2 to 5 are alone
    made = jax.jit(views.subgraph)(keys, {**made, "adjacency": jnp.asarray(np.stack([edges] * DRAWS))}, 0.2)
    size = np.asarray(made["node_mask"]).sum(1)
    np.testing.assert_allclose([(size == 2).mean(), (size == 1).mean()], [1 / 3, 2 / 3], atol=0.03)


def test_two_views():
    keys, made = graphs()
    pipeline = build_named(views.REGISTRY, {"name": "graph_views"}, "objective.augment")
    assert pipeline.ratio == 0.2
    both = jax.tree.map(np.asarray, jax.jit(pipeline)(keys, made))
    assert both["nodes"].shape == (DRAWS, 2, N, 3) and both["adjacency"].shape == (DRAWS, 2, N, N)
    mask, edges, nodes = both["node_mask"], both["adjacency"], both["nodes"]
    kinds = [  # each operation leaves its traces, unless it happens to change nothing
        (mask.sum(-1) == 7) & (edges == path(7)).all((2, 3)) & (nodes != np.asarray(made["nodes"][0])).any((2, 3)),
        (mask.sum(-1) == 7) & (edges != path(7)).any((2, 3)),
        mask.sum(-1) == 6,
    ]
    # Masked attributes; perturbed edges, which stay as they are with probability (0.8 (1 - 0.2 7 / 14))^.. ; the rest.
    still = 0.8**7 * (1 - 0.2 * 7 / 14) ** 14
    shares = [1 / 4, (1 - still) / 4, 1 / 2]
    for kind, share in zip(kinds, shares):
        np.testing.assert_allclose(kind.mean(0), share, atol=0.03)
        np.testing.assert_allclose((kind[:, 0] & kind[:, 1]).mean(), share**2, atol=0.03)  # independent views
    part = jax.jit(pipeline)(keys[:3], jax.tree.map(lambda x: x[:3], made))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), both, part)


def test_operations_of_each_view():
    keys, made = graphs(draws=20)
    config = {"name": "graph_views", "operations": [], "second": ["drop_nodes"], "ratio": 0.5}
    both = build_named(views.REGISTRY, config, "objective.augment")(keys, made)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), both, made)
    assert (both["node_mask"][:, 1].sum(1) == 4).all()
    with pytest.raises(UserError, match=r"objective\.augment\.operations\[0\]: got 'drop'"):
        build_named(views.REGISTRY, {**config, "operations": ["drop"]}, "objective.augment")
