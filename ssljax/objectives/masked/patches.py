"""Parts of objectives that mask patches: their inputs, what they demand of a model, and their picture."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Grid, Tile
from ssljax.objectives.base import Batch
from ssljax.objectives.images import ImageObjective, check_no_augmentation, view_shape, with_spectrograms

COLUMNS = ("original", "masked", "reconstruction")


@dataclasses.dataclass(frozen=True)
class PatchObjective(ImageObjective):
    """An objective that masks patches of images, or of spectrograms as images with one channel.

    Spectrograms are not augmented. Frames and bands at their ends that fill no patch are left out.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images", "spectrograms")

    augment: Any = schema.setting(
        {"name": "single"},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of images before masking; none by default",
    )

    def check(self) -> None:
        super().check()
        if self.reads == "spectrograms":
            check_no_augmentation(self)
        check_patches(self)
        size = self.model.patch_size
        if self.reads == "spectrograms" and self.model.config.strides != (size, size):
            raise UserError(
                f"model.strides: got {self.model.config.strides}, must be {(size, size)}, as patch_size: patches that "
                "overlap show what is masked"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [h, w, C] of the images whose patches are masked."""
        if self.reads == "images":
            return view_shape(self.augment, self.spec)
        rows, columns = self.model.grid(self.model.image_shape)
        return rows * self.model.patch_size, columns * self.model.patch_size, 1

    def prepare(self, batch: Batch) -> Batch:
        if self.reads == "images":
            return super().prepare(batch)
        batch = with_spectrograms(self.model, batch)
        if "spectrogram" not in batch:  # images that were made of spectrograms before
            return batch
        height, width, _ = self.shape
        return {**batch, "image": self.model.as_images(batch["spectrogram"])[:, :height, :width]}

    def augmented(self, keys: jax.Array, batch: Batch) -> jax.Array:
        """Returns the images of a prepared batch, augmented unless they are spectrograms."""
        if self.reads == "spectrograms":
            return batch["image"]
        return self.augment(keys, batch["image"], batch.get("aspect"))

    def encoder_flops(self, tokens: int | None = None) -> float:
        """Forward FLOPs of the encoder for `tokens` of the patches; None: all patches."""
        return float(self.model.flops(tokens=tokens, image_shape=self.shape))

    def columns(self, made: Any, rows: int, caption: str) -> Grid:
        """Returns the picture of visible (images, masked images, restored images); the last may be absent.

        Args:
            made: the images, [B, H, W, C] each.
            rows: number of examples.
            caption: what was done to the images, the end of a sentence.
        """
        found = [np.asarray(parallel.fetch(images)) for images in made]
        what = "images (central squares)"
        if self.reads == "spectrograms":  # low frequencies at the bottom
            found, what = [images[:, ::-1] for images in found], "spectrograms (time to the right, frequency up)"
        tiles = [[Tile(image) for image in row] for row in zip(*(images[:rows] for images in found))]
        title = "Reconstruction" if len(found) > 2 else "Masks"
        return Grid(title, f"Held-out {what} {caption}", tiles, COLUMNS[: len(found)])


def check_patches(objective: Any) -> None:
    """Raises a `UserError` if the model has no patches."""
    if not hasattr(objective.model, "grid"):
        raise UserError("model.name: this model has no patches that could be masked (fitting: vit)")


def check_token(objective: Any) -> None:
    """Raises a `UserError` if the model has no patches, or no mask token to stand in their place."""
    check_patches(objective)
    if not objective.model.config.mask_token:
        raise UserError("model.mask_token: got false, must be true: the objective hides patches inside the encoder")


def check_masks(objective: Any) -> None:
    """Raises a `UserError` if the model has no patches, or `mask_ratio` masks none or all of them."""
    check_patches(objective)
    shape = objective.shape if isinstance(objective, PatchObjective) else view_shape(objective.augment, objective.spec)
    rows, columns = objective.model.grid((1, *shape))
    hidden = round(rows * columns * objective.mask_ratio)  # as in `views.visible_patches`
    if not 0 < hidden < rows * columns:
        raise UserError(
            f"objective.mask_ratio: got {objective.mask_ratio}, which hides {hidden} of {rows * columns} patches "
            "(at least one must be hidden and one visible)"
        )
    if (masking := getattr(objective, "masking", None)) is not None:
        masking.check("objective.masking", rows * columns, objective.mask_ratio)


def check_fixed(objective: Any) -> None:
    """Raises a `UserError` if the number of patches that the encoder sees is to grow."""
    if "ratio" in objective.masking.grows:
        raise UserError(
            "objective.masking.grows: got 'ratio', but the encoder of this objective sees a fixed number of patches "
            "(allowed: 'size')"
        )


def run_share(objective: Any, step: jax.Array) -> jax.Array | float:
    """Returns the share of the run before a step; 1 if the length of the run is unknown."""
    return step / objective.steps if objective.steps else 1.0


def places_of(chosen: jax.Array, count: int) -> jax.Array:
    """Returns the places of the chosen ones of each row in ascending order, int32 [B, count].

    Args:
        chosen: bool [B, N], with `count` chosen places in each row.
        count: a Python number.
    """
    return jnp.argsort(~chosen, 1, stable=True)[:, :count].astype(jnp.int32)


def masked_images(images: jax.Array, mask: jax.Array, patch_size: int) -> jax.Array:
    """Returns images [B, H, W, C] in [0, 1], with grey in place of the patches of a mask [B, N]."""
    _, height, width, channels = images.shape
    patches = jnp.where(mask.astype(bool)[..., None], 0.5, views.patchify(images, patch_size))
    return views.unpatchify(patches, (height, width, channels))


def restored_images(
    objective: PatchObjective, images: jax.Array, mask: jax.Array, predicted: jax.Array, normalized: bool
) -> jax.Array:
    """Returns visible images [B, H, W, C] whose masked patches are predictions.

    Args:
        objective: the objective; its `mean` and `std` are those of the predicted pixels.
        images: [B, H, W, C], not normalised.
        mask: [B, N].
        predicted: [B, N, P].
        normalized: True: predictions are of normalised patches, and get the mean and the variance of the true patch.
    """
    _, height, width, channels = images.shape
    true = views.patchify(objective.pixels(images), objective.model.patch_size)
    predicted = views.unnormalize_patches(predicted, true) if normalized else predicted
    patches = jnp.where(mask.astype(bool)[..., None], predicted, true)
    whole = views.unpatchify(patches, (height, width, channels))
    return jnp.clip(objective.visible(views.unnormalize(whole, objective.mean, objective.std)), 0, 1)
