"""Recurrent language models: Elman's network, LSTM and GRU, as layers over the tokens of a text.

Elman 1990, "Finding Structure in Time"; Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate
of Gers et al. 2000; Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder". As language models:
Mikolov et al. 2010 and, with several layers and dropout between them, Zaremba et al. 2014.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.dense import constrain, constrain_rows, parameter
from ssljax.layers.embeddings import Table
from ssljax.layers.masks import Causal, Full, Mask, Prefix
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.roles import HEIGHTS
from ssljax.models.family import Encoded, element_shape
from ssljax.models.flops import dense_flops
from ssljax.models.tokens import Readout, TokenModel, at_least_of_data, pool


@dataclasses.dataclass(frozen=True)
class RNNConfig:
    """A recurrent network that reads a text from left to right, one token after another.

    Dropout acts on the inputs of each layer and on the output, not on the recurrent connections (Zaremba et al. 2014).
    """

    inputs: ClassVar[str] = "tokens"
    max_len: ClassVar[int | None] = None  # no limit
    extras: ClassVar[tuple[str, ...]] = ()  # additional heads

    cell: Literal["rnn", "lstm", "gru"] = setting(
        "lstm",
        doc="unit of the layers; 'rnn': h_t = tanh(W x_t + U h_(t-1) + b) (Elman 1990); 'lstm': long short-term memory "
        "with a forget gate; 'gru': gated recurrent units, the reset gate after the product with U",
    )
    width: int = setting(256, ge=1, doc="width of token embeddings and of the states of all layers")
    depth: int = setting(2, ge=1, doc="number of layers")
    forget_bias: float = setting(
        1.0, doc="initial bias of the forget gates of an LSTM, so that cells keep their content (Gers et al. 2000)"
    )
    vocab_size: int | None = setting(
        None, ge=1, doc="number of token ids, at least the number of the data; None: the number of the data"
    )
    tied: bool = setting(
        False,
        doc="use the transposed token table as the kernel of the read-out (Press and Wolf 2017, Inan et al. 2017)",
    )
    pool: Literal["last", "mean"] = setting(
        "mean", doc="pooled vector of a text; the output at the 'last' token, or the 'mean'; padding is left out"
    )
    dropout: float = setting(0.0, ge=0, lt=1, doc="dropout rate of the inputs of each layer and of the output")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", doc="type of activations; parameters and states are float32, and the loss is scaled for float16"
    )
    mup_base_width: int | None = setting(
        None,
        ge=1,
        doc="width at which muP equals the standard parametrisation (see `ssljax.layers.width`); None: no muP",
    )

    @property
    def width_ratio(self) -> float:
        """The width ratio of muP (`ssljax.layers.width`); 1 without muP."""
        return 1.0 if self.mup_base_width is None else self.width / self.mup_base_width

    def module(self, spec: Any, path: str = "model") -> "RNN":
        """The network for the tokens of `spec`."""
        element_shape(spec, "tokens", f"{path}.name")
        size = at_least_of_data(self.vocab_size, spec, path)
        return dataclasses.replace(self, vocab_size=size).standalone()

    def standalone(self) -> "RNN":
        """The network without data; `vocab_size` must be set."""
        return RNN(self)


class States(NamedTuple):
    """The states of all layers after the tokens so far, the cache of a recurrent network.

    An LSTM has two states, its output and the content of its cells; the other units have their output alone.
    """

    values: jax.Array  # float32 [L, S, B, D]

    @property
    def axes(self) -> tuple[str | None, ...]:
        """The logical axes of the array."""
        return "layers", None, "batch", "embed"


class Unit(NamedTuple):
    """A recurrent unit.

    Attributes:
        gates: names of the parts of its pre-activations.
        states: number S of its states; the first is its output.
        advance: (x [B, G, D], u [B, G, D], states [S, B, D]) -> next states, where x = W x_t + b and u = U h_(t-1).
    """

    gates: tuple[str, ...]
    states: int
    advance: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _rnn(x: jax.Array, u: jax.Array, states: jax.Array) -> jax.Array:
    return jnp.tanh(x + u).swapaxes(0, 1)


def _lstm(x: jax.Array, u: jax.Array, states: jax.Array) -> jax.Array:
    opened, kept, shown = jnp.moveaxis(jax.nn.sigmoid((x + u)[:, :3]), 1, 0)
    cells = kept * states[1] + opened * jnp.tanh((x + u)[:, 3])
    return jnp.stack([shown * jnp.tanh(cells), cells])


def _gru(x: jax.Array, u: jax.Array, states: jax.Array) -> jax.Array:
    reset, kept = jnp.moveaxis(jax.nn.sigmoid((x + u)[:, :2]), 1, 0)
    candidate = jnp.tanh(x[:, 2] + reset * u[:, 2])
    return (kept * states[0] + (1 - kept) * candidate)[None]


UNITS = {
    "rnn": Unit(("hidden",), 1, _rnn),
    "lstm": Unit(("input", "forget", "output", "cell"), 2, _lstm),
    "gru": Unit(("reset", "update", "candidate"), 1, _gru),
}


class Sequence(NamedTuple):
    """Properties of the tokens that all layers read."""

    first: jax.Array  # bool [B, T], True at the first token of a segment (padding is one), before which states are 0
    valid: jax.Array  # bool [B, T], False = padding, which changes no state
    noise: Noise | None  # None: no dropout


class Layer(nn.Module):
    """One recurrent layer: x [B, T, D] -> its outputs [B, T, D]."""

    config: RNNConfig

    def height_of(self, part: str) -> int:
        """The height of the layer's parameters (`layers.roles`), relative to the layer itself."""
        return 0

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, layer: tuple[jax.Array, jax.Array], sequence: Sequence
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Reads the tokens in order.

        Args:
            x_BxTxD: outputs of the layer below.
            layer: (number of the layer, its states before the first token [S, B, D]).
            sequence: starts of texts, padding and noise.

        Returns:
            outputs [B, T, D], and (the same, the states after the last token).
        """
        c, unit = self.config, UNITS[self.config.cell]
        number, states_SxBxD = layer
        x_BxTxD = constrain_rows(_dropped(x_BxTxD, c.dropout, sequence.noise, number))
        to_gates, from_state = (self._kernel(name) for name in ("in", "state"))
        bias_GxD = jnp.stack([self._bias(gate, c.forget_bias if gate == "forget" else 0.0) for gate in unit.gates])
        inputs_BxTxGxD = jnp.einsum("btd,dge->btge", x_BxTxD, to_gates, preferred_element_type=jnp.float32)
        inputs_BxTxGxD = constrain_rows(inputs_BxTxGxD, "mlp") + bias_GxD
        # The bias of U h, which the reset gate of a GRU multiplies; in other units it would be a second bias.
        inner_GxD = jnp.zeros_like(bias_GxD)
        if c.cell == "gru":
            inner_GxD = inner_GxD.at[-1].set(self._bias("candidate_state", 0.0))

        def advance(states: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
            x_BxGxD, first_B, valid_B = now
            states = jnp.where(first_B[:, None], 0.0, states)
            h_BxD = constrain_rows(states[0].astype(c.dtype))
            u_BxGxD = jnp.einsum("bd,dge->bge", h_BxD, from_state, preferred_element_type=jnp.float32)
            after = unit.advance(x_BxGxD, constrain_rows(u_BxGxD, "mlp") + inner_GxD, states)
            after = nn.with_logical_constraint(after, (None, "batch", None))
            after = jnp.where(valid_B[:, None], after, states)
            return after, after[0].astype(c.dtype)

        steps = (inputs_BxTxGxD.swapaxes(0, 1), sequence.first.T, sequence.valid.T)
        last, out_TxBxD = jax.lax.scan(advance, states_SxBxD, steps)
        out_BxTxD = constrain(out_TxBxD.swapaxes(0, 1))
        return out_BxTxD, (out_BxTxD, last)

    def _kernel(self, source: str) -> jax.Array:
        """The kernels [D, G, D] from the inputs ("in") or from the state ("state") to the gates.

        They are drawn from a uniform distribution of variance 1 / D.
        """
        width, gates = self.config.width, UNITS[self.config.cell].gates
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        names = [f"{gate}_{source}" for gate in gates]
        kernels = [
            parameter(self, name, init, ("embed", "mlp"), (width, width), role="matrix").astype(self.config.dtype)
            for name in names
        ]
        return jnp.stack(kernels, axis=1)

    def _bias(self, gate: str, value: float) -> jax.Array:
        init = nn.initializers.constant(value)
        return parameter(self, f"{gate}_bias", init, ("mlp",), (self.config.width,), role="bias")


class RNN(TokenModel):
    """A recurrent network over tokens [B, T], with a read-out to logits."""

    two_sided: ClassVar[bool] = False

    config: RNNConfig  # with vocab_size filled in

    @property
    def width(self) -> int:
        """Width of the outputs and of the pooled vector."""
        return self.config.width

    @property
    def width_ratio(self) -> float:
        """Width ratio of muP of the pooled vector."""
        return self.config.width_ratio

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the token table lies below all layers, the read-out above them."""
        return self.config.depth + 1 if part == "embed" else 0

    def setup(self) -> None:
        c, size = self.config, int(self.config.vocab_size or 0)
        # Vectors of length sqrt(width), so that gates react to their inputs from the start; shorter ones if they also
        # make the logits.
        init = nn.initializers.normal(0.1 if c.tied else 1.0)
        self.embed = Table(size, c.width, initializer=init, dtype=c.dtype)
        self.layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers", HEIGHTS: tuple(range(c.depth, 0, -1))},
        )(c)
        if not c.tied:
            init, names = nn.initializers.normal(0.02), ("embed", "vocab")  # muP scales the logits instead
            shape = (c.width, size)
            self.head_kernel = parameter(self, "head_kernel", init, names, shape, role="head", width_ratio=1.0)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: Mask,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
        states: bool = False,
        cache: States | None = None,
        start: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> Encoded:
        """Encodes tokens; the output at a token depends on this and on the earlier tokens of its text.

        Args:
            tokens: int [B, T].
            mask: allowed pairs of tokens, which must include each token with all earlier ones; later tokens are not
                read even if it allows them.
            segment_ids: int [B, T], 0 = padding; the states begin anew with each segment.
            positions, token_types, start: for the interface of transformers; the order of the tokens says all.
            noise: randomness of dropout; None: none.
            states: also return the embeddings and the outputs of all layers.
            cache: the states after earlier tokens; None: there are none.
            valid: bool [B, T], False = padding; None: segment_ids > 0.

        Raises:
            UserError: the mask forbids earlier tokens.
        """
        if not isinstance(mask, Full | Causal | Prefix):
            raise UserError(
                f"model.name: a recurrent network reads all earlier tokens, but the objective asks for the mask "
                f"{type(mask).__name__} (a transformer is required)"
            )
        c = self.config
        if segment_ids is not None and valid is None:
            valid = segment_ids > 0
        sequence = Sequence(
            starts(tokens, segment_ids), jnp.ones(tokens.shape, bool) if valid is None else valid, noise
        )
        before = self.empty_cache(len(tokens)) if cache is None else cache
        x = constrain(self.embed(tokens))
        out, (between, after) = self.layers(x, (jnp.arange(c.depth), before.values), sequence)
        out = _dropped(out, c.dropout, noise, "output")
        return Encoded(
            out,
            pool(out, segment_ids, c.pool),
            jnp.concatenate([x[None], between]) if states else None,
            None if cache is None else States(after),
        )

    def empty_cache(self, rows: int, slots: int = 0) -> States:
        """The states before the first token of `rows` texts; they need no slots for tokens."""
        c = self.config
        return States(jnp.zeros((c.depth, UNITS[c.cell].states, rows, c.width)))

    def readout(self, hidden: jax.Array) -> Readout:
        """Inputs of the projection of outputs [..., D] to logits, for a loss that computes logits in parts."""
        if self.width_ratio != 1:
            hidden = hidden / jnp.asarray(self.width_ratio, hidden.dtype)
        return Readout(hidden, self.embed.embedding.T if self.config.tied else self.head_kernel, None)

    def flops(self, tokens: int, *, causal: bool = True, predicted: int = 0) -> float:
        """Forward FLOPs of a sequence of `tokens` tokens, with logits for `predicted` of them."""
        c = self.config
        gates = len(UNITS[c.cell].gates)
        layer = 2 * dense_flops(tokens, c.width, gates * c.width)
        return c.depth * layer + dense_flops(predicted, c.width, int(c.vocab_size or 0))


def starts(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Returns True at the first token of each segment after the first, bool [B, T]; no token without segments."""
    if segment_ids is None:
        return jnp.zeros(tokens.shape, bool)
    before = jnp.concatenate([segment_ids[:, :1], segment_ids[:, :-1]], axis=1)
    return segment_ids != before


def _dropped(x: jax.Array, rate: float, noise: Noise | None, place: str | jax.Array) -> jax.Array:
    return x if noise is None else dropout(x, rate, noise.at(place))
