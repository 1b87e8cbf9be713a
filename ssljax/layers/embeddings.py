"""Embedding tables, learned vectors without a position, and the selection of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.dense import Initializer, parameter
from ssljax.layers.roles import Role
from ssljax.parallel.rules import free_sizes, partition_spec


class Table(nn.Module):
    """An embedding table: parameter `embedding` [rows, width] with logical axes (`axis`, "embed").

    Without `axis` every device holds the whole table. Positions and token types have such tables: where `shard_map`
    sums over "data", XLA's partitioner aborts if "fsdp" splits both the rows that look up and the table. A table whose
    rows cannot be divided by "tensor" and "fsdp" is split along its width, and gathered before it is looked up.
    """

    rows: int
    width: int
    axis: str | None = "vocab"
    initializer: Initializer = nn.initializers.normal(0.02)
    dtype: Any = "float32"
    role: Role = "embedding"

    def setup(self) -> None:
        shape, axes = (self.rows, self.width), (self.axis, "embed" if self.axis else None)
        self.embedding = parameter(self, "embedding", self.initializer, axes, shape, role=self.role)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks up ids int [...] -> [..., width]."""
        table = self.embedding
        if self.axis and partition_spec((self.axis, "embed"), table.shape, free_sizes())[1] is not None:
            table = nn.with_logical_constraint(table, (None, None))
        return jnp.take(table, ids, axis=0).astype(self.dtype)


def token_vectors(module: nn.Module, name: str, count: int, width: int) -> jax.Array:
    """`count` learned vectors [count, width] that belong to no position (class token, registers, mask token)."""
    return parameter(module, name, nn.initializers.normal(0.02), (None, "embed"), (count, width), role="token")


def take_tokens(x_BxNxD: jax.Array, index_BxK: jax.Array) -> jax.Array:
    """Selects tokens of each example: x [B, N, D] at index int [B, K] -> [B, K, D]."""
    return jnp.take_along_axis(x_BxNxD, index_BxK[..., None], axis=1)
