"""Parts of objectives that mask patches: what they demand of a model, and their picture."""

from typing import Any

import jax
import jax.numpy as jnp

from ssljax import parallel, views
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Grid, Tile
from ssljax.objectives.images import ImageObjective, view_shape

COLUMNS = ("original", "masked", "reconstruction")


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
    rows, columns = objective.model.grid((1, *view_shape(objective.augment, objective.spec)))
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
    objective: ImageObjective, images: jax.Array, mask: jax.Array, predicted: jax.Array, normalized: bool
) -> jax.Array:
    """Returns images [B, H, W, C] in [0, 1] whose masked patches are predictions.

    Args:
        objective: the objective; its `mean` and `std` are those of the predicted pixels.
        images: [B, H, W, C] in [0, 1].
        mask: [B, N].
        predicted: [B, N, P].
        normalized: True: predictions are of normalised patches, and get the mean and the variance of the true patch.
    """
    _, height, width, channels = images.shape
    true = views.patchify(objective.pixels(images), objective.model.patch_size)
    predicted = views.unnormalize_patches(predicted, true) if normalized else predicted
    patches = jnp.where(mask.astype(bool)[..., None], predicted, true)
    whole = views.unpatchify(patches, (height, width, channels))
    return jnp.clip(views.unnormalize(whole, objective.mean, objective.std), 0, 1)


def in_columns(made: Any, rows: int, caption: str) -> Grid:
    """Returns the picture of (images, masked images, restored images); the last may be absent."""
    tiles = [[Tile(image) for image in row] for row in zip(*(parallel.fetch(images)[:rows] for images in made))]
    return Grid("Reconstruction" if len(made) > 2 else "Masks", caption, tiles, COLUMNS[: len(made)])
