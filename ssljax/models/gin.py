"""Graph isomorphism networks (Xu et al. 2019, "How Powerful are Graph Neural Networks?")."""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import constrain_rows, parameter
from ssljax.layers.heads import MLPHead
from ssljax.layers.noise import Noise, dropout
from ssljax.models.family import Encoded, element_shape
from ssljax.models.flops import dense_flops

NORMS: dict[str, Literal["batch", "layer"] | None] = {"layer": "layer", "batch": "batch", "none": None}


@dataclasses.dataclass(frozen=True)
class GINConfig:
    """GIN (Xu et al. 2019): sums over neighbours, an MLP of two maps in each layer, all layers in the read-out."""

    inputs: ClassVar[str] = "graphs"

    width: int = setting(32, ge=1, doc="width of the vectors of nodes, and of the hidden vectors of the MLPs")
    depth: int = setting(3, ge=1, doc="number of layers; the vectors of all layers are joined: depth * width numbers")
    norm: Literal["layer", "batch", "none"] = setting(
        "layer",
        doc="normalisation between the two maps of an MLP; 'layer': within each node; 'batch' (the paper): over all "
        "nodes that are encoded together, without running statistics, so micro-batches are not exact; 'none': none",
    )
    pool: Literal["sum", "mean"] = setting("sum", doc="vector of a graph; the sum or the mean of the vectors of nodes")
    dropout: float = setting(0.0, ge=0, lt=1, doc="dropout rate after each layer")

    def module(self, spec: Any, path: str = "model") -> "GIN":
        """The encoder for the graphs of `spec`."""
        nodes, features = element_shape(spec, "nodes", f"{path}.name")
        return GIN(self, nodes, features)


class GIN(nn.Module):
    """An encoder of graphs of N nodes, padding included, to a vector of each node and one of the graph."""

    config: GINConfig
    nodes: int  # N of the data; graphs of other sizes are accepted too
    features: int  # F, features of a node

    @property
    def width(self) -> int:
        """Width of the vectors of nodes and graphs: that of all layers, joined."""
        return self.config.depth * self.config.width

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the layers form one stack."""
        return self.config.depth - int(part.rpartition("_")[2])

    @nn.compact
    def __call__(
        self, nodes: jax.Array, adjacency: jax.Array, node_mask: jax.Array, *, noise: Noise | None = None
    ) -> Encoded:
        """Encodes graphs.

        Layer k: h^k = relu(MLP((1 + eps) h^(k-1) + sum of h^(k-1) over the neighbours)) (eq. 4.1), h^0 the features.

        Args:
            nodes: features of the nodes, [B, N, F].
            adjacency: bool [B, N, N], symmetric, without padding.
            node_mask: bool [B, N], False = padding.
            noise: randomness of dropout; None: none.

        Returns:
            tokens [B, N, depth * width], 0 for padding; pooled [B, depth * width] (eq. 4.2, without layer 0).
        """
        c, h = self.config, nodes
        weights, edges = node_mask.astype(jnp.float32), adjacency.astype(jnp.float32)
        layers = []
        for i in range(c.depth):
            epsilon = parameter(self, f"epsilon_{i}", nn.initializers.zeros, (), (), role="scale")
            h = (1 + epsilon) * h + jnp.matmul(edges, h)
            h = nn.relu(MLPHead((c.width, c.width), norm=NORMS[c.norm], name=f"mlp_{i}")(h, weights))
            h = constrain_rows(dropout(h, c.dropout, None if noise is None else noise.at(i)))
            layers.append(h)
        tokens = jnp.concatenate(layers, -1) * weights[..., None]
        pooled = jnp.sum(tokens, 1)
        if c.pool == "mean":
            pooled = pooled / jnp.maximum(jnp.sum(weights, 1, keepdims=True), 1)
        return Encoded(tokens, pooled)

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        n = self.nodes
        return self.init(key, jnp.zeros((1, n, self.features)), jnp.zeros((1, n, n), bool), jnp.ones((1, n), bool))

    def flops(self) -> float:
        """Forward FLOPs of a graph, padding included."""
        c = self.config
        inputs = [self.features] + [c.width] * (c.depth - 1)
        sums = sum(dense_flops(self.nodes, self.nodes, width) for width in inputs)
        return sums + sum(dense_flops(self.nodes, width + c.width, c.width) for width in inputs)
