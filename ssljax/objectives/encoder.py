"""Base class of objectives that read the pooled output of an encoder, whatever its inputs are."""

import dataclasses
from typing import Any, ClassVar

import jax

from ssljax.base.exhibits import Exhibit
from ssljax.layers.masks import Full
from ssljax.objectives.base import Batch, Ctx, Params, apply
from ssljax.objectives.images import ImageObjective, check_no_augmentation, view_flops, with_spectrograms
from ssljax.objectives.pictures import Showing

# Elements of a batch that an encoder reads, by its kind of inputs.
ELEMENTS = {
    "images": ("image",),
    "spectrograms": ("spectrogram",),
    "tokens": ("tokens", "segment_ids", "positions"),
    "graphs": ("nodes", "adjacency", "node_mask"),
}


@dataclasses.dataclass(frozen=True)
class EncoderObjective(ImageObjective):
    """An objective over images, texts, sounds or graphs.

    Sounds become spectrograms on the device, unless the data have these. Spectrograms are also normalised with `mean`
    and `std`, but not scaled to [0, 1] before.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images", "tokens", "spectrograms", "graphs")

    def check(self) -> None:
        super().check()
        if not self.augmented:
            check_no_augmentation(self)

    @property
    def augmented(self) -> bool:
        """True if the model reads inputs that are augmented: images."""
        return bool(self.reads == "images")

    def prepare(self, batch: Batch) -> Batch:
        if self.reads == "spectrograms":
            return with_spectrograms(self.model, batch)
        return super().prepare(batch) if "image" in batch else batch

    def init_encoder(self, key: jax.Array, batch: Batch) -> Params:
        """Returns the parameters of the encoder; flax partitioning boxes hold the logical axes."""
        inputs = self.read(self.prepare(batch))
        if "tokens" in inputs:
            return self.model.init(key, inputs["tokens"], mask=Full())["params"]
        return self.model.init(key, *inputs.values())["params"]

    def read(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns what the encoder reads of a batch, as it is."""
        return {name: batch[name] for name in ELEMENTS[self.reads] if name in batch}

    def encoded(self, encoder: Params, inputs: Any, noise: Any, ctx: Ctx | None = None) -> Any:
        """Returns the model's `Encoded` of images in [0, 1], spectrograms, graphs, or tokens with full attention.

        Args:
            encoder: parameters of the model.
            inputs: {"image": [B, h, w, C]}, {"spectrogram": [B, T, F]}, {"tokens": [B, T], ...}, or {"nodes":
                [B, N, F], "adjacency": [B, N, N], "node_mask": [B, N]}.
            noise: see `noise_of`.
            ctx: context of the step, for router losses.
        """
        inputs = self.read(inputs)
        if self.reads == "graphs":
            return apply(self.model, encoder, *inputs.values(), noise=noise, ctx=ctx)
        if "tokens" not in inputs:
            (pixels,) = inputs.values()
            return apply(self.model, encoder, self.pixels(pixels), noise=noise, ctx=ctx)
        segments, positions = inputs.get("segment_ids"), inputs.get("positions")
        options: dict[str, Any] = {"mask": Full(), "segment_ids": segments, "positions": positions}
        return apply(self.model, encoder, inputs["tokens"], **options, noise=noise, ctx=ctx)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = self.encoded(self.model_params(params, extra), batch, None)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        return super().pictures(params, extra, batch, show) if self.reads == "images" else {}

    def encoder_flops(self, augment: Any, spec: Any) -> float:
        """Forward FLOPs of the encoder for one view of an example."""
        if self.reads == "images":
            return view_flops(self.model, augment, spec)
        if self.reads in ("spectrograms", "graphs"):
            return self.model.flops()
        return self.model.flops(tokens=spec.max_len, causal=False, predicted=0)
