"""ELECTRA: a small generator fills masks, and the encoder finds the tokens that are not the original ones.

Clark, Luong, Le, Manning 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.base.hashing import name_id
from ssljax.layers.embeddings import take_tokens
from ssljax.models.flops import dense_flops
from ssljax.models.tokens import Readout, TokenConfig
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, still, views_of
from ssljax.objectives.masked.text import MaskedText, restored
from ssljax.objectives.pictures import SHOWN, TEXTS, Showing, marked
from ssljax.objectives.tokens import token_loss, token_scores, valid
from ssljax.views.keys import example_keys

# Parts of the generator that are those of the encoder.
SHARED = ("embed", "position_embed", "type_embed", "embed_norm")


@dataclasses.dataclass(frozen=True)
class Electra(MaskedText):
    """The loss of the generator plus `weight` times that of the encoder over sampled tokens (Clark et al., section 2).

    The generator has the depth of the encoder and its embeddings, with a linear map to its own width. No gradient
    passes through the sampled tokens.
    """

    mask_share: float = schema.setting(
        1.0, ge=0, le=1, doc="share of chosen tokens that the generator sees as the mask token"
    )
    random_share: float = schema.setting(
        0.0, ge=0, le=1, doc="share of chosen tokens that the generator sees as a random token"
    )
    generator: float = schema.setting(
        0.25, gt=0, le=1, doc="share of the width, heads and feed-forward width of the encoder that the generator has"
    )
    weight: float = schema.setting(
        50.0, gt=0, doc="factor of the loss of replaced tokens; the forms that restore tokens have factor 1"
    )
    form: Literal["electra", "electra_15", "replace_mlm", "all_tokens_mlm"] = schema.setting(
        "electra",
        doc="what the encoder predicts; 'electra': for all tokens whether they were replaced; 'electra_15': for chosen "
        "tokens; 'replace_mlm': the chosen tokens; 'all_tokens_mlm': all tokens, with a copy gate (section 3.3)",
    )

    def check(self) -> None:
        super().check()
        config = self.model.config
        if not isinstance(config, TokenConfig):
            raise UserError("model.name: the generator is a smaller transformer, so the model must be a transformer")
        if self._classifies and "replaced" not in config.extras:
            raise UserError(f"objective.form: {self.form!r} needs a head for tokens; add 'replaced' to model.extras")
        if self._restores and config.tied and self.model.embedding_dim != self.model.readout_width:
            raise UserError(
                f"objective.form: {self.form!r} reads tokens out of states of width {self.model.readout_width}, but "
                f"the tied table has width {self.model.embedding_dim}; set model.readout_transform to true"
            )
        if config.embedding_map == "tokens":
            raise UserError(
                "model.embedding_map: got 'tokens', but the generator shares the sum of the embeddings (allowed: sum, "
                "before_norm)"
            )
        try:
            self._generator_config.validate()
        except ValueError as error:
            raise UserError(f"objective.generator: {self.generator} gives an impossible model: {error}") from error

    @property
    def _classifies(self) -> bool:
        """True if the encoder has a logit for each token."""
        return self.form != "replace_mlm"

    @property
    def _restores(self) -> bool:
        """True if the encoder predicts original tokens."""
        return self.form in ("replace_mlm", "all_tokens_mlm")

    @property
    def _generator_config(self) -> Any:
        c, share = self.model.config, self.generator
        heads = max(1, round(share * c.heads))
        scaled = lambda x: None if x is None else max(1, round(share * x))  # noqa: E731
        return dataclasses.replace(
            c,
            preset=None,
            width=max(1, round(share * c.width / heads)) * heads,
            heads=heads,
            mlp_dim=scaled(c.mlp_dim),
            mup_base_width=scaled(c.mup_base_width),
            embedding_dim=self.model.embedding_dim,
            extras=(),
            tied=True,
            readout_transform=True,
            readout_bias=True,
        )

    @property
    def generator_model(self) -> Any:
        """The generator, a masked language model whose tables are those of the encoder."""
        return self._generator_config.standalone()

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params, extra = super().init(key, batch)
        own = jax.random.fold_in(key, 1)
        whole = self.generator_model.init(own, batch["tokens"][:1], mask=self.attention, method="init_all")["params"]
        return Variables({**params, "generator": {k: v for k, v in whole.items() if k not in SHARED}}, extra)

    def _generator_params(self, params: Params) -> Params:
        return params["generator"] | {k: params["encoder"][k] for k in SHARED if k in params["encoder"]}

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        return self.masked(keys, batch)[0]

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        noise, weights = noise_of(ctx), self._generator_params(params)
        context: dict[str, Any] = {name: inputs.get(name) for name in ("segment_ids", "positions")}
        context |= {"mask": self.attention, "ctx": ctx, "part": "generator"}
        own = None if noise is None else noise.at("generator")
        guessed = apply(self.generator_model, weights, inputs["tokens"], **context, noise=own).tokens
        chosen = take_tokens(guessed, inputs["chosen_at"])  # [B, K, generator width]
        readout = apply(self.generator_model, weights, chosen, method="readout")
        keys = example_keys(jax.random.fold_in(ctx.key, name_id("sampled tokens")), ctx.row)
        sampled = jnp.where(inputs["counted"], sample(keys, readout), inputs["target"])
        tokens = restored({**inputs, "target": sampled})
        states = self.hidden(params, {**inputs, "tokens": tokens}, noise, ctx).tokens
        out = {"generator": chosen, "tokens": tokens}
        if self._classifies:
            out["replaced"] = apply(self.model, params["encoder"], states, method="replaced_logits")  # [B, T]
        if self._restores:
            out["states"] = states if self._classifies else take_tokens(states, inputs["chosen_at"])
        return out

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        counted = inputs["counted"].reshape(-1).astype(jnp.float32)
        readout = apply(self.generator_model, self._generator_params(params), outputs["generator"], method="readout")
        generator = token_loss(token_scores(readout, inputs["target"]), counted)
        original = restored(inputs)
        replaced = outputs["tokens"] != original
        if not self._restores:
            name, term, right = "replaced", *self._detection(outputs["replaced"], replaced, inputs)
        elif self.form == "replace_mlm":
            found = token_loss(self.scores(params, outputs["states"], inputs["target"]), counted)
            name, term, right = "restored", found.terms["nll"], found.metrics["accuracy"]
        else:
            name, term, right = "restored", *self._copying(params, outputs, original, inputs)
        tokens = valid(inputs)
        metrics = {
            "accuracy/generator": generator.metrics["accuracy"],
            "accuracy": right,
            "replaced_share": (jnp.sum(replaced).astype(jnp.float32), jnp.sum(tokens).astype(jnp.float32)),
        }
        return Loss({**generator.terms, name: term}, metrics)

    def _detection(self, logits: jax.Array, replaced: jax.Array, inputs: Any) -> tuple[Any, Any]:
        """Returns the term and the accuracy of logits [B, T] of replaced tokens, over all or over chosen tokens."""
        among = valid(inputs) if self.form == "electra" else self._chosen(inputs)
        values, weights = losses.electra(logits, replaced, among, reduce=False)
        right = jnp.sum(among & ((logits > 0) == replaced)).astype(jnp.float32)
        return (self.weight, jnp.sum(values * weights), jnp.sum(weights)), (right, jnp.sum(weights))

    def _copying(self, params: Params, outputs: Any, original: jax.Array, inputs: Any) -> tuple[Any, Any]:
        """Returns the term and the accuracy of p(token) = c [token = token read] + (1 - c) p_MLM(token), all tokens.

        The accuracy is the share of original tokens with a probability above 1/2.
        """
        among = valid(inputs).reshape(-1).astype(jnp.float32)
        labels = jnp.where(valid(inputs), original, 0)
        restored_nll = self.scores(params, outputs["states"], labels).nll
        logit = outputs["replaced"].reshape(-1)
        written = jax.nn.log_sigmoid(logit) - restored_nll  # log((1 - c) p_MLM)
        same = (outputs["tokens"] == original).reshape(-1)
        log_p = jnp.where(same, jnp.logaddexp(jax.nn.log_sigmoid(-logit), written), written)
        right = jnp.sum(among * (log_p > jnp.log(0.5)))
        return (1.0, -jnp.sum(among * log_p), jnp.sum(among)), (right, jnp.sum(among))

    def _chosen(self, inputs: Any) -> jax.Array:
        """bool [B, T], True for the chosen tokens."""
        at, counted = inputs["chosen_at"], inputs["counted"]
        none = jnp.zeros(inputs["tokens"].shape, bool)
        return jax.vmap(lambda row, at, counted: row.at[at].set(counted))(none, at, counted)

    def filled(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[Any, ...]:
        """Returns the inputs, the original tokens [B, T] and the outputs of `encode`, with the encoder's guesses."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        outputs = self.encode(params, extra, inputs, still(key, batch))
        if not self._classifies:
            logits = apply(self.model, params["encoder"], outputs["states"], method="logits")
            outputs["guess"] = jnp.argmax(logits, axis=-1)
        return inputs, restored(inputs), outputs

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        inputs, original, outputs = parallel.fetch(jax.jit(self.filled)(params, extra, batch, show.key))
        known, examples = parallel.fetch(valid(inputs)), []
        for row in range(min(TEXTS, len(known))):
            ids, read = (x[row][known[row]][:SHOWN].tolist() for x in (original, outputs["tokens"]))
            chosen, counted = inputs["chosen_at"][row], inputs["counted"][row]
            places = {int(at): k for k, at in enumerate(chosen) if counted[k] and at < len(ids)}
            lines = [("generated", marked(show.decode, ids, places, {at: read[at] for at in places}))]
            if self._classifies:
                logits = outputs["replaced"][row][known[row]][:SHOWN]
                found = [at for at in range(len(ids)) if logits[at] > 0]
                lines.append(("found", marked(show.decode, read, found, {at: read[at] for at in found})))
            else:
                guesses = {at: int(outputs["guess"][row][k]) for at, k in places.items()}
                lines.append(("guess", marked(show.decode, ids, places, guesses)))
            examples.append([*lines, ("truth", marked(show.decode, ids, places, {at: ids[at] for at in places}))])
        caption = "Held-out texts with tokens of the generator in brackets, what the encoder makes of them, the truth."
        return {"samples": Texts("Replaced words", caption, examples)}

    def flops(self, spec: Any) -> float:
        length, chosen = spec.max_len, self.budget(spec.max_len)
        predicted = {"replace_mlm": chosen, "all_tokens_mlm": length}.get(self.form, 0)
        head = dense_flops(length, self.model.width, self.model.width + 1) if self._classifies else 0.0
        small = self.generator_model
        # Sampling reads the chosen places out once more, without the backward pass, which costs two forward passes.
        sampling = dense_flops(chosen, small.readout_width, small.table_rows) / 3
        generator = small.flops(tokens=length, causal=False, predicted=chosen) + sampling
        return generator + self.model.flops(tokens=length, causal=False, predicted=predicted) + head


def sample(keys: jax.Array, readout: Readout) -> jax.Array:
    """Draws a token int32 [B, K] from the softmax of each of the logits of a read-out, by the Gumbel maximum.

    One place of all examples is drawn at a time, so that there are no logits [B, K, V]. No gradient passes.

    Args:
        keys: random keys [B].
        readout: inputs of the projection, hidden states [B, K, D].
    """
    cap = readout.cap
    hidden, kernel, bias = jax.lax.stop_gradient(readout[:3])

    def own_samples(axis_name: Any, rows: Any, shared: Any) -> jax.Array:
        (hidden, data), (kernel, bias) = rows, shared
        keys = jax.random.wrap_key_data(data, impl="threefry2x32")

        def at(place: jax.Array) -> jax.Array:
            x, kernels = hidden[:, place], kernel.astype(hidden.dtype)
            logits = jnp.matmul(x, kernels, preferred_element_type=jnp.float32)
            logits = logits if cap is None else cap * jnp.tanh(logits / cap)
            logits = logits if bias is None else logits + bias
            draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, place), logits.shape[1:])  # noqa: E731
            return jnp.argmax(logits + jax.vmap(draw)(keys), axis=-1).astype(jnp.int32)

        return jax.lax.map(at, jnp.arange(hidden.shape[1])).T

    data = jax.random.key_data(keys)
    return parallel.over_batch(own_samples, (hidden, data), (kernel, bias), splits_shared=True)
