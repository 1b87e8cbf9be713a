"""Image captioning with a decoder that reads patches (Liu et al. 2023, "Visual Instruction Tuning", section 4.2)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.exhibits import Exhibit, Grid, Tile
from ssljax.data.rows import last_token
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.images import ImageObjective, unaugmented, view_shape
from ssljax.objectives.pictures import Showing, first_text, in_rows
from ssljax.objectives.tokens import token_loss, token_scores, valid


@dataclasses.dataclass(frozen=True)
class Captioning(ImageObjective):
    """Mean negative log-likelihood per token of the caption, in nats, given the image and the previous tokens.

    The patches precede the caption; the hidden state of the last patch predicts its first token. The first stage of the
    paper trains only the two maps between image tower and decoder: freeze the other parameters with `optimizer.freeze`.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image_text",)
    model_key: ClassVar[str | None] = None

    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of the images; none by default"
    )

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        batch = self.prepare(batch)
        images, tokens = batch["image"][:1], batch["tokens"][:1]
        return Variables(self.model.init(key, images, tokens, method="init_all")["params"], {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        images = self.augment(keys, batch["image"], batch.get("aspect"))
        return {"image": images, "tokens": batch["tokens"], "valid": valid(batch)}

    def held_out(self) -> "Captioning":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self._captions(params, inputs, inputs["valid"], ctx)

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores, weights = self._scores(params, outputs, inputs["tokens"], inputs["valid"])
        return token_loss(scores, weights)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        counted = self.scored(batch)
        scores, weights = self._scores(params, self._captions(params, batch, counted), batch["tokens"], counted)
        shape = batch["tokens"].shape
        return -jnp.sum((scores.nll * weights).reshape(shape), 1), jnp.sum(weights.reshape(shape), 1)

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: all tokens except padding; the image precedes the first one."""
        return valid(batch)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        patches = apply(self.model, params, self.pixels(batch["image"]), method="patches")
        return {"pooled": patches.mean(1), "tokens": patches}

    def greedy(self, params: Params, batch: Batch) -> jax.Array:
        """Returns the most probable caption, token by token, int32 [B, T]; T is the length of the captions, at most 48.

        Without a cache: each token needs a pass over the image and the tokens before it.
        """
        shape = batch["image"].shape[0], min(batch["tokens"].shape[1], 48)

        def add(t: jax.Array, tokens: jax.Array) -> jax.Array:
            inputs = {"image": batch["image"], "tokens": tokens}
            states = self._captions(params, inputs, jnp.ones(shape, bool))
            logits = apply(self.model, params, states[:, t], method="logits")
            return tokens.at[:, t].set(jnp.argmax(logits, axis=-1).astype(jnp.int32))

        return jax.lax.fori_loop(0, shape[1], add, jnp.zeros(shape, jnp.int32))

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        batch, end, tiles = views.centered(batch), last_token(self.spec.special_ids), []
        for i, ids in enumerate(np.asarray(jax.jit(self.greedy)(params, batch))[: show.rows]):
            ids = ids[: np.flatnonzero(ids == end)[0]] if end in ids else ids
            true = show.decode(first_text(batch, i)).strip()
            tiles.append(Tile(np.asarray(batch["image"][i]), f"{show.decode(ids).strip()}\n(true: {true})"))
        return {"captions": Grid("Captions", "Captions that the model writes for held-out images.", in_rows(tiles))}

    def flops(self, spec: Any) -> float:
        return self.model.flops(spec.max_len, image_shape=view_shape(self.augment, spec))

    def _captions(self, params: Params, inputs: Any, counted: jax.Array, ctx: Ctx | None = None) -> jax.Array:
        """Hidden states [B, T, D] from which tokens are predicted; `counted` bool [B, T], False = padding."""
        images, tokens = self.pixels(inputs["image"]), inputs["tokens"]
        noise = None if ctx is None else noise_of(ctx)
        keywords: dict[str, Any] = {"noise": noise, "valid": counted, "ctx": ctx, "part": ""}
        return apply(self.model, params, images, tokens, method="captions", **keywords)

    def _scores(
        self, params: Params, states_BxTxD: jax.Array, tokens: jax.Array, counted: jax.Array
    ) -> tuple[losses.TokenScores, jax.Array]:
        """Returns (scores [B T] of all tokens, weights [B T], 0 = padding)."""
        scores = token_scores(apply(self.model, params, states_BxTxD, method="readout"), tokens)
        return scores, counted.reshape(-1).astype(jnp.float32)
