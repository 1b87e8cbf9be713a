"""Contrastive predictive coding: from what was seen so far, which of many parts comes k steps later?

van den Oord, Li, Vinyals 2018, "Representation Learning with Contrastive Predictive Coding".
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import MLPHead
from ssljax.layers.width import output_ratio
from ssljax.models.context import Context, ContextConfig
from ssljax.models.flops import dense_flops
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.encoder import EncoderObjective
from ssljax.objectives.images import merge, unaugmented, view_shape


@dataclasses.dataclass(frozen=True)
class CPC(ContrastiveObjective, EncoderObjective):
    """InfoNCE (eq. 4) of bilinear scores (eq. 3) of a context and the latents of later parts, mean over steps k.

    An example is cut into parts, which the encoder sees one by one: squares of an image row by row, spans of a text,
    or windows of a spectrogram. The part k steps later is the k-th below in an image. The negatives of step k are the
    parts that are the positives of other contexts, of the same example and of others. Scores are divided by the root of
    the width, as in attention, which the matrices could do themselves.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images", "tokens", "spectrograms")

    part: int = schema.setting(16, gt=0, doc="size of a part: side of a square in pixels, number of tokens or frames")
    stride: int | None = schema.setting(
        None, gt=0, doc="distance of neighbouring parts in pixels, tokens or frames; None: `part`, without overlap"
    )
    ahead: int = schema.setting(12, gt=0, doc="number of steps that are predicted (K), each by a matrix of its own")
    context: ContextConfig = schema.setting(
        ContextConfig(), doc="network over the latents, not used by the evaluations of `pooled` features"
    )
    augment: Any = schema.setting(
        {"name": "single"},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of an image before it is cut; none by default",
    )

    def check(self) -> None:
        super().check()
        sizes = self._sizes
        if self.part > min(sizes):
            raise UserError(f"objective.part: got {self.part}, must be at most {min(sizes)}, the size of an example")
        rows, _ = self.grid(sizes)
        if self.ahead >= rows:
            raise UserError(
                f"objective.ahead: got {self.ahead}, must be less than {rows}, the number of "
                f"{'rows of parts of an image' if self.reads == 'images' else 'parts of an example'}"
            )
        if hasattr(self.model, "grid"):
            height = self.part if self.reads == "images" else self.model.image_shape[0]
            if min(self.model.grid((height, self.part, 1))) < 1:
                raise UserError(f"objective.part: got {self.part}, must be at least {self.model.patch_size}, a patch")

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Height and width of the images that are cut, or the length of a sequence."""
        if self.reads == "images":
            return view_shape(self.augment, self.spec)[:2]
        return (self.model.image_shape[1] if self.reads == "spectrograms" else self.spec.max_len,)

    def grid(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Returns (rows, columns) of the parts of an image of (height, width), or of a sequence of (length,)."""
        rows, *columns = ((n - self.part) // (self.stride or self.part) + 1 for n in sizes)
        return rows, columns[0] if columns else 1

    def cut(self, inputs: Any) -> dict[str, jax.Array]:
        """Returns the parts [B, N, ...] of what the encoder reads: images [B, H, W, C] or sequences [B, T, ...].

        A part of several texts keeps the first; the others become padding.
        """
        found = self.read(inputs)
        found.pop("positions", None)  # those in a part begin at 0
        if self._of_sounds:
            frames = self.model.frames(inputs["audio_length"])
            found["segment_ids"] = (jnp.arange(found["spectrogram"].shape[1]) < frames[:, None]).astype(jnp.int32)
        if self.reads == "images":
            rows, columns = (self._places(n) for n in found["image"].shape[1:3])
            x = found["image"][:, rows][:, :, :, columns]  # [B, R, part, S, part, C]
            return {"image": jnp.swapaxes(x, 2, 3).reshape(len(x), -1, self.part, self.part, x.shape[-1])}
        parts = {name: x[:, self._places(x.shape[1])] for name, x in found.items()}
        if "segment_ids" in parts:
            segments = parts["segment_ids"]  # [B, N, part]
            parts["segment_ids"] = jnp.where(segments == first_segment(segments)[..., None], segments, 0)
        return parts

    @property
    def _of_sounds(self) -> bool:
        """True if spectrograms are computed of sounds, which may end in padding."""
        return self.reads == "spectrograms" and self.model.config.sample_rate is not None

    def _places(self, size: int) -> np.ndarray:
        """Places of the parts along one side, int [N, part]."""
        return np.arange(0, size - self.part + 1, self.stride or self.part)[:, None] + np.arange(self.part)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, context_key, step_key = jax.random.split(key, 3)
        context = self._context()
        latents = jnp.zeros((1, math.prod(self.grid(self._sizes)), self.model.width))
        params = {
            "encoder": self.init_encoder(encoder_key, batch),
            "context": context.init(context_key, latents, self.grid(self._sizes))["params"],
            "steps": self._steps().init(step_key, jnp.zeros((1, context.width)))["params"],
        }
        return Variables(params, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        if self.augmented:
            return {"image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))}
        return self.read(batch) | ({"audio_length": batch["audio_length"]} if self._of_sounds else {})

    def held_out(self) -> "CPC":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        latents, text, grid = self.latents(params, inputs, ctx)
        noise = noise_of(ctx)
        noise = None if noise is None else noise.at("context")
        read = (latents, grid, self._segments(text), noise)
        contexts = apply(self._context(), params["context"], *read, ctx=ctx, part="context")
        # [B, N, D], [B, N, W], [B, N]; a coupled objective differentiates its outputs, so these numbers are floats
        return {"latents": latents, "contexts": contexts, "text": text.astype(jnp.float32)}

    def latents(
        self, params: Params, inputs: Any, ctx: Ctx | None = None
    ) -> tuple[jax.Array, jax.Array, tuple[int, int]]:
        """Returns latents [B, N, D] of the parts, the texts int [B, N] they are of (0: padding), and their grid.

        Args:
            params: parameters of the objective.
            inputs: what the encoder reads, whole.
            ctx: context of the step; None: no dropout.
        """
        parts = self.cut(inputs)
        first = next(iter(parts.values()))
        count = first.shape[1]
        noise = None if ctx is None else noise_of(ctx, count)
        pooled = self.encoded(params["encoder"], {k: merge(x) for k, x in parts.items()}, noise, ctx).pooled
        segments = parts.get("segment_ids")
        text = jnp.ones(first.shape[:2], jnp.int32) if segments is None else first_segment(segments)
        latents = jnp.where(text[..., None] > 0, pooled.reshape(*first.shape[:2], -1), 0)
        whole = next(iter(self.read(inputs).values()))
        return latents, text, self.grid(whole.shape[1 : 3 if self.reads == "images" else 2])

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        latents, text = outputs["latents"], outputs["text"]
        columns = self.grid(self._sizes)[1]
        guesses = apply(self._steps(), params["steps"], outputs["contexts"])
        guesses = guesses.reshape(*latents.shape[:2], self.ahead, -1)  # [B, N, K, D]
        scores, learned = functools.partial(losses.info_nce, normalize=False), {"temperature": latents.shape[-1] ** 0.5}
        sums = [jnp.float32(0)] * 4  # loss, weight, right answers, bounds
        for k in range(self.ahead):
            shift = (k + 1) * columns
            first, second = merge(guesses[:, :-shift, k]), merge(latents[:, shift:])
            together = (text[:, :-shift] == text[:, shift:]) & (text[:, shift:] > 0)
            weights = together.reshape(-1).astype(jnp.float32)
            found = self.match(scores, first, second, learned, ctx, weights)
            _, value, count = found.term
            bound = count * jnp.log(jnp.maximum(count, 1)) - value
            sums = [a + b for a, b in zip(sums, (value, count, found.accuracy[0], bound))]
        value, count, right, bound = sums
        metrics = {
            "accuracy": (right, count),
            "mi_bound": (bound, count),
            "feature_std": (count * losses.feature_std(merge(latents)), count),
        }
        return Loss({"info_nce": (1.0, value, count)}, metrics)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        """Mean over the parts of latents, "pooled", and of contexts, "context"; the latents, "tokens"."""
        latents, text, grid = self.latents(params, batch)
        contexts = apply(self._context(), params["context"], latents, grid, self._segments(text))
        valid = text > 0
        share = (valid / jnp.maximum(jnp.sum(valid, 1, keepdims=True), 1))[..., None]
        pooled, context = (jnp.sum(share * x.astype(jnp.float32), 1) for x in (latents, contexts))
        return {"pooled": pooled, "context": context, "tokens": latents}

    def flops(self, spec: Any) -> float:
        count = math.prod(self.grid(self._sizes))
        width, context = self.model.width, self._context()
        if self.reads == "images":
            part = self.model.flops(image_shape=(self.part, self.part, view_shape(self.augment, spec)[-1]))
        elif self.reads == "tokens":
            part = self.model.flops(tokens=self.part, causal=False, predicted=0)
        else:
            part = self.model.flops(image_shape=(self.model.image_shape[0], self.part, 1))
        guesses = dense_flops(count, context.width, self.ahead * width)
        return count * part + context.flops(count, width) + guesses

    def _segments(self, text: jax.Array) -> jax.Array | None:
        """The texts of the parts as segments of the context; None for images, which have one each."""
        return None if self.reads == "images" else text

    def _steps(self) -> MLPHead:
        """The matrices of all steps, side by side."""
        return MLPHead((self.ahead * self.model.width,), norm=None, bias=False, input_ratio=self._context().width_ratio)

    def _context(self) -> Context:
        return self.context.module(output_ratio(self.model))


def first_segment(segment_ids: jax.Array) -> jax.Array:
    """Returns the first segment other than 0, padding, of each part int [..., part]; 0 if there is none."""
    at = jnp.argmax(segment_ids > 0, -1)
    return jnp.take_along_axis(segment_ids, at[..., None], -1)[..., 0]
