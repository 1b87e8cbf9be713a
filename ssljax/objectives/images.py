"""Base class and helpers of objectives over images."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.noise import Noise
from ssljax.objectives.base import Batch, Ctx, Objective, Params, apply, noise_of, views_of
from ssljax.objectives.pictures import Showing, of_views

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageObjective(Objective):
    """An objective whose model reads images: scaled to [0, 1], augmented, then normalised with `mean` and `std`."""

    inputs: ClassVar[tuple[str, ...]] = ("images",)

    mean: tuple[float, ...] = schema.setting(
        (0.5,), doc="mean of pixels in [0, 1], which is subtracted; a list of one number, or of one per channel"
    )
    std: tuple[float, ...] = schema.setting(
        (0.25,),
        gt=0,
        doc="standard deviation of pixels in [0, 1], by which they are divided after `mean` is subtracted; a list of "
        "one number, or of one per channel",
    )

    def check(self) -> None:
        kind = "spectrograms" if self.reads == "spectrograms" else "images"
        if kind == "images" and "image" not in self.spec.elements:
            return
        if kind == "spectrograms" and getattr(self.model.config, "sample_rate", None) is not None:
            self._warn_of_scale()
        channels = self.spec.elements["image"]["shape"][-1] if kind == "images" else 1
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, channels):
                allowed = "1" if channels == 1 else f"1 or {channels}"
                raise UserError(
                    f"objective.{name}: got {len(values)} values {values}, but {kind} have {channels} "
                    f"channel{'s' if channels > 1 else ''} ({allowed} required)"
                )

    def _warn_of_scale(self) -> None:
        if schema.is_default(self, "mean") and schema.is_default(self, "std"):
            log.warning(
                "objective.mean, objective.std: (0.5,) and (0.25,), which are for pixels; log-mel spectrograms of "
                "sounds have about -9 and 5"
            )

    def prepare(self, batch: Batch) -> Batch:
        return {**batch, "image": views.to_float(batch["image"])}

    def pixels(self, images: jax.Array) -> jax.Array:
        """Normalises images in [0, 1] with `mean` and `std`; call it after all augmentation."""
        return views.normalize(images, self.mean, self.std)

    def visible(self, images: jax.Array) -> jax.Array:
        """Returns images in [0, 1]; of a spectrogram, the mean is grey, and black and white are two deviations away."""
        return images if self.reads == "images" else jnp.clip(0.5 + self.pixels(images) / 4, 0, 1)

    def encode_images(
        self, params: Params, images: jax.Array, noise: Noise | None, ctx: Ctx | None = None
    ) -> jax.Array:
        """Pooled features [B, V, D] of views [B, V, h, w, C] in [0, 1]."""
        pooled = apply(self.model, params, self.pixels(merge(images)), noise=noise, ctx=ctx).pooled
        return pooled.reshape(*images.shape[:2], -1)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = apply(self.model, self.model_params(params, extra), self.pixels(batch["image"]))
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if "image" not in batch:
            return {}
        inputs = jax.jit(functools.partial(views_of, self))(show.key, batch, jnp.int32(0))
        return of_views(views.centered(batch)["image"], inputs, show.rows)


def check_no_augmentation(objective: Any) -> None:
    """Refuses settings of images of an objective whose model reads other inputs, where they would do nothing.

    Raises:
        UserError: one of them is not the default.
    """
    for key in sorted({"augment", "mixup", "cutmix"} & schema.keys(type(objective)).keys()):
        if not schema.is_default(objective, key):
            raise UserError(f"objective.{key}: has no effect on {objective.reads}, which are not augmented; remove it")


def with_spectrograms(model: Any, batch: Batch) -> Batch:
    """Returns a batch with the "spectrogram" [B, T, F] of its sounds, if it has sounds but no spectrograms."""
    if "audio" not in batch or "spectrogram" in batch:
        return batch
    return {**batch, "spectrogram": model.log_mel(batch["audio"])}


def merge(views: jax.Array) -> jax.Array:
    """Merges examples and views: [B, V, ...] -> [B V, ...]."""
    return views.reshape(-1, *views.shape[2:])


def each_crop(inputs: Any, ctx: Ctx, encode: Callable[[jax.Array, Noise | None], jax.Array]) -> jax.Array:
    """Encodes the crops of each size and joins the results to [B, V, ...], global crops first.

    Args:
        inputs: {"global": [B, G, h, w, C], "local": [B, L, s, s, C]}; "local" may be absent.
        ctx: context of the step; every crop of every example has separate noise.
        encode: (crops [B, V, h, w, C], noise) -> [B, V, ...].
    """
    crops = [inputs[name] for name in ("global", "local") if name in inputs]
    total, offset, encoded = sum(c.shape[1] for c in crops), 0, []
    for views_BxV in crops:
        encoded.append(encode(views_BxV, noise_of(ctx, views_BxV.shape[1], offset, total)))
        offset += views_BxV.shape[1]
    return jnp.concatenate(encoded, 1)


def uniformity(z_BxD: jax.Array, rows: int = 256) -> jax.Array:
    """`losses.uniformity` of the first `rows` examples, as a metric of a training step.

    All B^2 pairs of a large batch would cost too much for a number that is only logged.
    """
    return losses.uniformity(z_BxD[:rows])


def unaugmented(augment: Any) -> Any:
    """Returns the view `single` with its size alone: the whole image, without a crop or other operations."""
    return type(augment)(size=augment.size)


def view_flops(model: Any, augment: Any, spec: Any, **options: Any) -> float:
    """Forward FLOPs of one view of an image; see `view_shape` for its size."""
    return model.flops(image_shape=view_shape(augment, spec), **options)


def view_shape(augment: Any, spec: Any) -> tuple[int, int, int]:
    """The shape [h, w, C] of a view: `augment.size` if it is set, else the size of the images."""
    height, width, channels = spec.elements["image"]["shape"]
    return augment.size or height, augment.size or width, channels


def crop_flops(model: Any, augment: Any, spec: Any, head: float) -> dict[str, float]:
    """Forward FLOPs of the "global" and the "local" crops of one image; `head`: FLOPs per crop after the encoder."""
    *large, channels = view_shape(augment, spec)
    small = (augment.local_size or large[0] // 2, augment.local_size or large[1] // 2)
    return {
        "global": augment.global_crops * (model.flops(image_shape=(*large, channels)) + head),
        "local": augment.local_crops * (model.flops(image_shape=(*small, channels)) + head)
        if augment.local_crops
        else 0,
    }
