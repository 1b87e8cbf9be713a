"""Base class of objectives in which a model reads a text, often a corrupted one, and writes another.

An encoder-decoder reads with its encoder and writes with its decoder. A decoder reads both texts in a row, one after
the other, and predicts the tokens of the second.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.layers.masks import Causal, Full, Keys, Mask, Prefix
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.pictures import MASK, TEXTS, Decode, Showing
from ssljax.objectives.tokens import prefix_flops, token_loss, token_scores, valid


@dataclasses.dataclass(frozen=True)
class SequenceObjective(Objective):
    """Mean cross-entropy per target token, in nats.

    `views` returns a `ssljax.views.Denoising` as a mapping. A row of packed texts is corrupted as a single text.
    """

    inputs: ClassVar[tuple[str, ...]] = ("sequences", "tokens")
    fills_masks: ClassVar[bool] = False
    marked: ClassVar[bool] = True  # the last token of a target marks its end, at which a guess is cut
    heading: ClassVar[str]  # of the picture
    caption: ClassVar[str]

    bidirectional: bool = schema.setting(
        True,
        doc="a decoder reads the first text in both directions, as a prefix language model; False: causally, as a "
        "language model",
    )

    @property
    def attention(self) -> Mask:
        """The attention mask of the model to a text of its own: that of a decoder is causal."""
        return Causal() if self.reads == "tokens" else Full()

    @property
    def prefixed(self) -> bool:
        """True if a decoder reads a prompt in both directions."""
        return self.bidirectional and self.reads == "tokens"

    def lengths(self, spec: Any) -> tuple[int, int]:
        """Returns the numbers of tokens of a row of inputs and of targets, with padding."""
        raise NotImplementedError

    @property
    def first_sentinel(self) -> int:
        """The id of the first sentinel; the others count down from it."""
        return int(self.model.config.vocab_size) - 1

    @property
    def mask_id(self) -> int:
        """The id of the mask token."""
        if "mask" not in self.spec.special_ids:
            raise UserError("objective.name: this objective needs a mask token, and data.tokenizer has none")
        return int(self.spec.special_ids["mask"])

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of the special tokens, which are not hidden or moved."""
        return tuple(sorted(self.spec.special_ids.values()))

    @property
    def sentence_ends(self) -> tuple[int, ...]:
        """The ids of the tokens that end a sentence."""
        if not self.spec.sentence_ends:
            raise UserError("objective.name: this objective needs sentences, and no token of data.tokenizer ends one")
        return tuple(self.spec.sentence_ends)

    def reading(self, inputs: str) -> Objective:
        """Returns the objective.

        Raises:
            UserError: an encoder-decoder is to read causally.
        """
        if inputs == "sequences" and not self.bidirectional:
            raise UserError(
                "objective.bidirectional: got False, must be True for an encoder-decoder, whose encoder reads in both "
                "directions"
            )
        return self

    def model_spec(self, spec: Any) -> Any:
        """Returns the description of what the model reads: a decoder reads both texts in a row."""
        if self.reads == "sequences" or "tokens" not in spec.elements:
            return spec
        length = sum(self.lengths(spec))
        tokens = {**spec.elements["tokens"], "shape": [length]}
        return dataclasses.replace(spec, elements={**spec.elements, "tokens": tokens}, max_len=length)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        return Variables({"encoder": self.model.initial(key)["params"]}, {})

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        """Returns the hidden states [B, U, D] from which the target tokens are predicted."""
        return (self._answer if self.reads == "sequences" else self._continue)(params["encoder"], inputs, ctx)

    def _answer(self, encoder: Params, inputs: Any, ctx: Ctx) -> jax.Array:
        """The states of an encoder-decoder."""
        noise, not_padding = noise_of(ctx), Keys(inputs["valid"])
        noises = (None, None) if noise is None else (noise.at("encoder"), noise.at("decoder"))
        reading: dict[str, Any] = {"mask": not_padding, "noise": noises[0], "method": "encode"}
        reading |= {"valid": inputs["valid"], "ctx": ctx}
        memory = apply(self.model, encoder, inputs["tokens"], **reading).tokens
        start = self.model.config.decoder_start
        before = jnp.pad(inputs["target"], ((0, 0), (1, 0)), constant_values=start)[:, :-1]
        writing: dict[str, Any] = {"mask": Causal(), "memory_mask": not_padding, "noise": noises[1], "method": "decode"}
        writing |= {"valid": inputs["counted"], "ctx": ctx}
        return apply(self.model, encoder, before, memory, **writing).tokens

    def _continue(self, encoder: Params, inputs: Any, ctx: Ctx) -> jax.Array:
        """The states of a decoder: that of the last token that it reads predicts the first token that it writes."""
        texts, kept, read = views.joined_texts(*(inputs[name] for name in views.Denoising._fields))
        mask = Prefix(read) if self.bidirectional else Causal()
        options: dict[str, Any] = {"mask": mask, "segment_ids": kept.astype(jnp.int32), "noise": noise_of(ctx)}
        states = apply(self.model, encoder, texts, **options, ctx=ctx).tokens  # [B, S + U - 1, D]
        before = read[:, None] - 1 + jnp.arange(inputs["target"].shape[1])
        return jnp.take_along_axis(states, jnp.maximum(before, 0)[..., None], axis=1)

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        return self.scores(params, outputs, inputs)[1]

    def scores(self, params: Params, outputs: jax.Array, inputs: Any) -> tuple[losses.TokenScores, Loss]:
        """Returns the scores [B U] of the target tokens, and the loss."""
        scores = token_scores(apply(self.model, params["encoder"], outputs, method="readout"), inputs["target"])
        weights = self.written(inputs).reshape(-1).astype(jnp.float32)
        return scores, token_loss(scores, weights)

    def written(self, inputs: Any) -> jax.Array:
        """bool [B, U]: the target tokens that count; a decoder has nothing from which to predict the first of all."""
        if self.reads == "sequences":
            return inputs["counted"]
        first = jnp.arange(inputs["target"].shape[1]) == 0
        return inputs["counted"] & (jnp.any(inputs["valid"], axis=1, keepdims=True) | ~first)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        method = {"method": "encode"} if self.reads == "sequences" else {}
        mask = Full() if self.bidirectional else Causal()
        options: dict[str, Any] = {"mask": mask, "segment_ids": valid(batch).astype(jnp.int32), **method}
        encoded = apply(self.model, params["encoder"], batch["tokens"], **options)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None or show.generate is None:
            return {}
        found = parallel.fetch(jax.jit(functools.partial(views_of, self))(show.key, batch, jnp.int32(0)))
        cut = lambda ids, mask: [row[ok] for row, ok in zip(ids[:TEXTS], mask[:TEXTS])]  # noqa: E731
        inputs, targets = cut(found["tokens"], found["valid"]), cut(found["target"], found["counted"])
        start = (self.model.config.decoder_start,) if self.reads == "sequences" else ()
        before, longest = len(start) or max(map(len, inputs)), found["target"].shape[1]
        if (count := min(longest, (self.model.config.max_len or before + longest) - before)) < 1:
            return {}
        guesses = show.generate(inputs, count, start)
        examples = [
            [
                ("input", self.readable(show.decode, read)),
                ("guess", self.readable(show.decode, self._guessed(guess, target))),
                ("truth", self.readable(show.decode, target[:-1] if self.marked else target)),
            ]
            for read, guess, target in zip(inputs, guesses, targets)
            if len(target)
        ]
        return {"samples": Texts(self.heading, self.caption, examples)} if examples else {}

    def _guessed(self, guess: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns a guess up to the mark that ends the target, or up to the length of the target."""
        if not self._ends(target):
            return guess[: len(target)]
        return guess[: np.flatnonzero([*guess, target[-1]] == target[-1])[0]]

    def _ends(self, target: np.ndarray) -> bool:
        """Returns True if the last token of a target marks its end; a target that was cut has no mark."""
        last = int(target[-1])
        return self.marked and (last in self.special_ids or last >= self.spec.vocab_size)

    def sign(self, token: int) -> str | None:
        """Returns the sign that stands for a token: masks are lines, sentinels numbers from 1 on; None: it is text."""
        if token == self.spec.special_ids.get("mask"):
            return MASK
        return f"[{self.first_sentinel + 1 - token}]" if token >= self.spec.vocab_size else None

    def readable(self, decode: Decode, ids: Iterable[int]) -> str:
        """Returns the text of tokens, with the signs of sentinels and masks."""
        parts: list[str] = []
        for sign, group in itertools.groupby(map(int, ids), self.sign):
            run = list(group)
            parts += [decode(run).strip()] if sign is None else [sign] * len(run)
        return " ".join(filter(None, parts))

    def flops(self, spec: Any) -> float:
        read, written = self.lengths(spec)
        if self.reads == "sequences":
            return float(self.model.flops(read, written))
        tokens = read + written - 1
        return prefix_flops(self.model, tokens, written, (read / tokens) ** 2 if self.bidirectional else 0.0)
