"""Span corruption: sentinels replace spans of tokens in the input, and an encoder-decoder restores the spans.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section 3.3.4.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.layers.masks import Causal, Keys
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.pictures import TEXTS, Decode, Showing
from ssljax.objectives.tokens import token_loss, token_scores, valid


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Objective):
    """Mean cross-entropy per target token, in nats.

    The sentinels are the last ids of the model's vocabulary, so `model.vocab_size` must be at least the data's
    vocabulary size plus the number of sentinels. A row of packed texts is corrupted as a single text.
    """

    inputs: ClassVar[tuple[str, ...]] = ("sequences",)

    rate: float = schema.setting(0.15, gt=0, lt=1, doc="share of tokens that sentinels replace")
    mean_span: float = schema.setting(3.0, ge=1, doc="mean length of a replaced span, in tokens")

    def check(self) -> None:
        spans = int(views.span_counts(self.spec.max_len, self.rate, self.mean_span)[1]) + 1
        least, vocab_size = self.spec.vocab_size + spans, self.model.config.vocab_size
        if vocab_size < least:
            raise UserError(
                f"model.vocab_size: {vocab_size} leaves no room for {spans} sentinels above the "
                f"{self.spec.vocab_size} ids of the data (at least {least} is required)"
            )

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        return Variables({"encoder": self.model.initial(key)["params"]}, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        corrupted = views.span_corrupt(
            keys,
            batch["tokens"],
            jnp.sum(valid(batch), axis=1),
            sentinel=self.model.config.vocab_size - 1,
            rate=self.rate,
            mean_span=self.mean_span,
        )
        return corrupted._asdict()

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        noise, not_padding = noise_of(ctx), Keys(inputs["valid"])
        noises = (None, None) if noise is None else (noise.at("encoder"), noise.at("decoder"))
        encoder: dict[str, Any] = {"mask": not_padding, "noise": noises[0], "method": "encode"}
        encoder |= {"valid": inputs["valid"], "ctx": ctx}
        memory = apply(self.model, params["encoder"], inputs["tokens"], **encoder).tokens
        start = self.model.config.decoder_start
        before = jnp.pad(inputs["target"], ((0, 0), (1, 0)), constant_values=start)[:, :-1]
        decoder: dict[str, Any] = {"mask": Causal(), "memory_mask": not_padding, "noise": noises[1], "method": "decode"}
        decoder |= {"valid": inputs["counted"], "ctx": ctx}
        return apply(self.model, params["encoder"], before, memory, **decoder).tokens  # [B, U, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores = token_scores(apply(self.model, params["encoder"], outputs, method="readout"), inputs["target"])
        weights = inputs["counted"].reshape(-1).astype(jnp.float32)
        return token_loss(scores, weights)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        keywords: dict[str, Any] = {
            "mask": Keys(valid(batch)),
            "segment_ids": valid(batch).astype(jnp.int32),
            "method": "encode",
        }
        encoded = apply(self.model, params["encoder"], batch["tokens"], **keywords)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None or show.generate is None:
            return {}
        found = parallel.fetch(jax.jit(functools.partial(views_of, self))(show.key, batch, jnp.int32(0)))
        cut = lambda ids, mask: [row[ok] for row, ok in zip(ids[:TEXTS], mask[:TEXTS])]  # noqa: E731
        inputs, targets = cut(found["tokens"], found["valid"]), cut(found["target"], found["counted"])
        guesses = show.generate(inputs, found["target"].shape[1], (self.model.config.decoder_start,))
        examples = [
            [
                ("input", self.readable(show.decode, read)),
                ("guess", self.readable(show.decode, guess[: np.flatnonzero([*guess, target[-1]] == target[-1])[0]])),
                ("truth", self.readable(show.decode, target[:-1])),
            ]
            for read, guess, target in zip(inputs, guesses, targets)
            if len(target)
        ]
        caption = "Held-out texts with numbers in place of spans, the spans that the model writes, and the true ones."
        return {"samples": Texts("Hidden spans", caption, examples)} if examples else {}

    def readable(self, decode: Decode, ids: Iterable[int]) -> str:
        """Returns the text of tokens, in which sentinels are numbers in brackets, from 1 on."""
        parts: list[str] = []
        for of_data, run in itertools.groupby(map(int, ids), lambda i: i < self.spec.vocab_size):
            if of_data:
                parts.append(decode(run).strip())
            else:
                parts += [f"[{self.model.config.vocab_size - i}]" for i in run]
        return " ".join(filter(None, parts))

    def flops(self, spec: Any) -> float:
        return self.model.flops(*views.denoising_lengths(spec.max_len, self.rate, self.mean_span))
