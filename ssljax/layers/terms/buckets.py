"""Learned biases for buckets of distances (Raffel et al. 2020, T5, section 2.1)."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting
from ssljax.layers.dense import parameter
from ssljax.layers.terms.base import Heads, Pairs, Term


@dataclasses.dataclass(frozen=True)
class BucketKeys:
    """The configuration keys of the scheme, inherited by `BlockConfig`."""

    relative_buckets: tuple[int, int] = setting(
        (32, 128),
        ge=2,
        doc='position_bias "relative": number of buckets, and the distance in tokens at which the last one begins',
    )


class RelativeBuckets(Term):
    """A learned bias per bucket and head, shared by all layers: parameter `relative_bias` [buckets, H]."""

    def prepare(self, stack: nn.Module, pairs: Pairs) -> jax.Array:
        c = self.config
        buckets, max_distance = c.relative_buckets
        shape = (buckets, c.known("heads"))
        init, names = nn.initializers.normal(0.02), (None, "heads")
        table_RxH = parameter(stack, "relative_bias", init, names, shape, role="position")
        distance_N = pairs.all_distances()
        row_N = bucket(distance_N, buckets, max_distance, both=not pairs.causal)
        bias_NxH = table_RxH[jnp.asarray(row_N)]
        return bias_NxH[pairs.distance() - distance_N[0]].transpose(0, 3, 1, 2)

    def logits(self, attention: Any, heads: Heads, state: jax.Array) -> jax.Array:
        return state


def bucket(distance: np.ndarray, buckets: int, max_distance: int, both: bool) -> np.ndarray:
    """Bucket of a distance (key position - query position): one bucket per short distance, logarithmic for long ones.

    Args:
        distance: int, any shape.
        buckets: number of buckets.
        max_distance: distances of at least this number share the last bucket.
        both: True: keys after the query use the upper half of the buckets; False: they count as distance 0.

    Returns:
        int, in the shape of `distance`.
    """
    if both:
        buckets //= 2
        base, far = np.where(distance > 0, buckets, 0), np.abs(distance)
    else:
        base, far = np.zeros_like(distance), np.maximum(-distance, 0)
    exact = buckets // 2
    # float32 as in the published models: the rounding decides at which distance a bucket begins.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / math.log(max_distance / exact)
    large = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    return base + np.where(far < exact, far, large)
