"""Random views of padded graphs (You et al. 2020, "Graph Contrastive Learning with Augmentations", section 3.1).

A graph is {"nodes": features [B, N, F], "adjacency": bool [B, N, N], symmetric, "node_mask": bool [B, N], False =
padding}. An operation takes (keys [B], graphs, ratio) and returns graphs of the same shapes; nodes that are left out
become padding in their places. n is the number of nodes of a graph.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.views.keys import fold_in, uniforms

Graphs = dict[str, jax.Array]
Operation = Literal["drop_nodes", "perturb_edges", "mask_attributes", "subgraph"]


def drop_nodes(keys: jax.Array, graphs: Graphs, ratio: float) -> Graphs:
    """Leaves out a random subset of floor(ratio n) nodes with their edges."""
    return _only(graphs, ~_random_nodes(keys, graphs["node_mask"], ratio))


def perturb_edges(keys: jax.Array, graphs: Graphs, ratio: float) -> Graphs:
    """Drops each edge with probability `ratio`, and adds other pairs at random, as many as are dropped on average.

    Each pair of nodes without an edge gets one with probability ratio E / (number of these pairs), at most 1, for E
    edges.
    """
    edges, mask = graphs["adjacency"], graphs["node_mask"]
    upper = jnp.triu(uniforms(keys, mask.shape[1] ** 2).reshape(edges.shape), 1)
    u = upper + jnp.swapaxes(upper, 1, 2)  # one number for both directions
    free = mask[:, :, None] & mask[:, None, :] & ~edges & ~jnp.eye(mask.shape[1], dtype=bool)
    share = _count(edges) / jnp.maximum(_count(free), 1)
    return {**graphs, "adjacency": jnp.where(edges, u >= ratio, free & (u < ratio * share))}


def _count(pairs_BxNxN: jax.Array) -> jax.Array:
    return jnp.sum(pairs_BxNxN, (1, 2), keepdims=True).astype(jnp.float32)


def mask_attributes(keys: jax.Array, graphs: Graphs, ratio: float) -> Graphs:
    """Replaces the features of a random subset of floor(ratio n) nodes by the mean of the features of the graph."""
    nodes, mask = graphs["nodes"], graphs["node_mask"]
    count = jnp.maximum(jnp.sum(mask, 1), 1)[:, None, None]
    mean = jnp.sum(nodes * mask[..., None], 1, keepdims=True) / count
    return {**graphs, "nodes": jnp.where(_random_nodes(keys, mask, ratio)[..., None], mean, nodes)}


def subgraph(keys: jax.Array, graphs: Graphs, ratio: float) -> Graphs:
    """Keeps n - floor(ratio n) nodes that are connected: a random node, then one by one a random neighbour of these.

    The walk of the authors' code, which also steps from any node so far. It ends early in a small component.
    """
    edges, mask = graphs["adjacency"], graphs["node_mask"]
    size = jnp.sum(mask, 1)
    target = size - _share(size, ratio)

    def grown(step: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inside, reached = state  # bool [B, N]: nodes so far, and these with all their neighbours
        next_to = reached & ~inside
        chosen = jnp.argmax(jnp.where(next_to, uniforms(fold_in(keys, step), mask.shape[1]), -1.0), 1)
        more = next_to.any(1) & (jnp.sum(inside, 1) < target)
        new = jax.nn.one_hot(chosen, mask.shape[1], dtype=bool) & more[:, None]
        near = jnp.take_along_axis(edges, chosen[:, None, None], 1)[:, 0] & more[:, None]
        return inside | new, reached | near

    empty = jnp.zeros_like(mask)
    first = grown(jnp.int32(0), (empty, mask))[0]  # the first step may go to any node
    near = jnp.any(edges & first[:, :, None], 1)
    inside, _ = jax.lax.fori_loop(1, mask.shape[1], grown, (first, first | near))
    return _only(graphs, inside)


def _only(graphs: Graphs, keep_BxN: jax.Array) -> Graphs:
    """Returns graphs with some of their nodes; the others become padding."""
    mask = graphs["node_mask"] & keep_BxN
    return {
        "nodes": graphs["nodes"] * mask[..., None],
        "adjacency": graphs["adjacency"] & mask[:, :, None] & mask[:, None, :],
        "node_mask": mask,
    }


def _random_nodes(keys: jax.Array, mask: jax.Array, ratio: float) -> jax.Array:
    """Returns a random subset of floor(ratio n) of the nodes of each graph, bool [B, N]."""
    order = jnp.argsort(jnp.where(mask, uniforms(keys, mask.shape[1]), 2.0), 1)
    return jnp.argsort(order, 1) < _share(jnp.sum(mask, 1), ratio)[:, None]


def _share(size: jax.Array, ratio: float) -> jax.Array:
    """Returns floor(ratio size), where ratio * size in float32 may be a little below a whole number."""
    return jnp.floor(ratio * size + 1e-4).astype(jnp.int32)


_OPERATIONS = {
    "drop_nodes": drop_nodes,
    "perturb_edges": perturb_edges,
    "mask_attributes": mask_attributes,
    "subgraph": subgraph,
}


@dataclasses.dataclass(frozen=True)
class GraphViews:
    """Two independent views of graphs: (keys [B], {name: [B, ...]}) -> {name: [B, 2, ...]}."""

    ratio: float = setting(0.2, ge=0, lt=1, doc="share of the nodes or edges that an operation changes")
    operations: tuple[Operation, ...] = setting(
        get_args(Operation), doc="operations, of which each view of a graph gets one at random; none: it is unchanged"
    )
    second: tuple[Operation, ...] | None = setting(None, doc="operations on the second view; None: as `operations`")

    def __call__(self, keys: jax.Array, graphs: Graphs) -> Graphs:
        second = self.operations if self.second is None else self.second
        views = [self._view(fold_in(keys, v), graphs, chosen) for v, chosen in enumerate((self.operations, second))]
        return jax.tree.map(lambda *xs: jnp.stack(xs, 1), *views)

    def _view(self, keys: jax.Array, graphs: Graphs, operations: tuple[Operation, ...]) -> Graphs:
        """Returns one view of each graph."""
        if not operations:
            return graphs
        made = [_OPERATIONS[name](fold_in(keys, 1 + i), graphs, self.ratio) for i, name in enumerate(operations)]
        choice = (uniforms(fold_in(keys, 0), 1)[:, 0] * len(operations)).astype(jnp.int32)
        rows = jnp.arange(len(choice))
        return jax.tree.map(lambda *xs: jnp.stack(xs, 1)[rows, choice], *made)
