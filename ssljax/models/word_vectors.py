"""Word vectors: two tables, one of vectors of tokens and one of vectors of their contexts (Mikolov et al. 2013)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from ssljax.base.schema import setting
from ssljax.layers.embeddings import Table
from ssljax.layers.masks import Mask
from ssljax.models.family import Encoded, element_shape
from ssljax.models.flops import dense_flops
from ssljax.models.tokens import Readout, TokenModel, at_least_of_data, pool


@dataclasses.dataclass(frozen=True)
class WordVectorsConfig:
    """A vector for each token, whatever the text around it, and a second one for the token as a context of others."""

    inputs: ClassVar[str] = "tokens"
    max_len: ClassVar[int | None] = None  # no limit
    extras: ClassVar[tuple[str, ...]] = ()  # additional heads

    width: int = setting(100, ge=1, doc="width of the vectors")
    vocab_size: int | None = setting(
        None, ge=1, doc="number of token ids, at least the number of the data; None: the number of the data"
    )

    def module(self, spec: Any, path: str = "model") -> "WordVectors":
        """The tables for the tokens of `spec`."""
        element_shape(spec, "tokens", f"{path}.name")
        size = at_least_of_data(self.vocab_size, spec, path)
        return dataclasses.replace(self, vocab_size=size).standalone()

    def standalone(self) -> "WordVectors":
        """The tables without data; `vocab_size` must be set."""
        return WordVectors(self)


class WordVectors(TokenModel):
    """The vectors of tokens [B, T], and their mean; the read-out has the vectors of contexts as its kernel."""

    two_sided: ClassVar[bool] = False

    config: WordVectorsConfig  # with vocab_size filled in

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.config.width

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): there are no blocks between the tokens and their contexts."""
        return 1 if part == "embed" else 0

    def setup(self) -> None:
        c, size = self.config, int(self.config.vocab_size or 0)

        def around_zero(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-0.5 / c.width, maxval=0.5 / c.width)

        self.embed = Table(size, c.width, initializer=around_zero)
        self.context = Table(size, c.width, initializer=nn.initializers.zeros)

    def __call__(
        self, tokens: jax.Array, *, mask: Mask, segment_ids: jax.Array | None = None, **context: Any
    ) -> Encoded:
        """Looks up tokens int [B, T]; of the options of other models, `segment_ids` alone matters: 0 is padding."""
        x = self.embed(tokens)
        return Encoded(x, pool(x, segment_ids, "mean"))

    def vectors(self, tokens: jax.Array) -> jax.Array:
        """The vectors [..., D] of tokens int [...]."""
        return self.embed(tokens)

    def contexts(self, tokens: jax.Array) -> jax.Array:
        """The vectors [..., D] of tokens int [...] as contexts of other tokens."""
        return self.context(tokens)

    def readout(self, hidden: jax.Array) -> Readout:
        """Inputs of the projection of vectors [..., D] to logits of contexts."""
        return Readout(hidden, self.context.embedding.T, None)

    def flops(self, tokens: int, *, causal: bool = False, predicted: int = 0) -> float:
        """Forward FLOPs of a sequence, with logits for `predicted` tokens; looking vectors up is free."""
        return dense_flops(predicted, self.config.width, int(self.config.vocab_size or 0))
