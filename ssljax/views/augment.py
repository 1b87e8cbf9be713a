"""Random views of images: one set of operations (`Augment`) and three pipelines that apply it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base import schema
from ssljax.base.schema import setting
from ssljax.views import color, geometry
from ssljax.views.keys import fold_in, uniforms
from ssljax.views.pixels import resize


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random operations on a view after its crop, in the order of the fields. By default all are off.

    The field with the name of an operation is its probability per view; 0 removes it from the compiled program. The
    fields after it set its strength.
    """

    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), gt=0, doc="range of width / height of a crop")
    flip: float = setting(0.0, ge=0, le=1, doc="probability of a horizontal flip")
    rotate: float = setting(
        0.0, ge=0, le=1, doc="probability of a rotation by 0, 90, 180 or 270 degrees, each equally likely"
    )
    jitter: float = setting(
        0.0, ge=0, le=1, doc="probability of colour jitter: brightness, contrast, saturation and hue, in this order"
    )
    jitter_strength: float = setting(1.0, ge=0, doc="factor of `brightness`, `contrast`, `saturation` and `hue`")
    brightness: float = setting(
        0.8,
        ge=0,
        doc="colour jitter multiplies pixels by a uniform factor in [1 - brightness, 1 + brightness], at least 0",
    )
    contrast: float = setting(
        0.8,
        ge=0,
        doc="range of colour jitter of the contrast; the distance from the mean grey value of the image is multiplied "
        "by a uniform factor in [1 - contrast, 1 + contrast], at least 0",
    )
    saturation: float = setting(
        0.8,
        ge=0,
        doc="range of colour jitter of the saturation; the distance from the grey value of the pixel is multiplied by "
        "a uniform factor in [1 - saturation, 1 + saturation], at least 0",
    )
    hue: float = setting(
        0.2, ge=0, le=0.5, doc="colour jitter rotates the hue by a uniform share of the colour circle in [-hue, hue]"
    )
    gray: float = setting(0.0, ge=0, le=1, doc="probability of conversion to grey")
    blur: float = setting(0.0, ge=0, le=1, doc="probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), ge=0, doc="range of the standard deviation of the blur in pixels of the view, drawn uniformly"
    )
    solarize: float = setting(
        0.0, ge=0, le=1, doc="probability of solarisation: values x at or above `solarize_threshold` become 1 - x"
    )
    solarize_threshold: float = setting(0.5, ge=0, le=1, doc="threshold of solarisation, for values in [0, 1]")
    cutout: float = setting(
        0.0,
        ge=0,
        le=1,
        doc="probability of a cutout: a black square whose centre is any pixel, so that it may extend past the border",
    )
    cutout_size: float = setting(0.5, gt=0, le=1, doc="side of the cutout, as a share of the shorter side of the view")
    noise: float = setting(
        0.0, ge=0, le=1, doc="probability of additive Gaussian noise; the result is clipped to [0, 1]"
    )
    noise_std: float = setting(0.1, ge=0, doc="standard deviation of the noise, for values in [0, 1]")

    def validate(self) -> None:
        _ordered("crop_ratio", self.crop_ratio)
        _ordered("blur_sigma", self.blur_sigma)

    def __call__(
        self,
        keys: jax.Array,
        images: jax.Array,
        size: tuple[int, int],
        crop_scale: tuple[float, float],
        aspect: jax.Array | None = None,
    ) -> jax.Array:
        """Returns one view of each image, [M, h, w, C] with (h, w) = `size`, from images [M, H, W, C] and keys [M].

        A crop scale of (1, 1) takes the whole image and resizes it. `aspect` [M] is the width / height of pictures that
        were squeezed into the images: crops have the proportions of the picture, and (1, 1) takes its central square.
        """
        # All uniform numbers are drawn at once, also for operations that are off, so that the draws of an operation do
        # not depend on which others are on.
        columns = list(itertools.accumulate(_DRAWS.values()))[:-1]
        u = dict(zip(_DRAWS, jnp.split(uniforms(keys, sum(_DRAWS.values())), columns, axis=1)))
        if crop_scale == (1.0, 1.0):
            x = resize(images, size) if aspect is None else geometry.central_square(images, size, aspect)
        else:
            x = geometry.random_resized_crop(u["crop"], images, size, crop_scale, self.crop_ratio, aspect)
        if not _off(self.flip):
            x = geometry.random_flip(u["flip"], x, self.flip)
        if not _off(self.rotate):
            x = geometry.random_rotate90(u["rotate"], x, self.rotate)
        if not (_off(self.jitter) or _off(self.jitter_strength)):
            ranges = (self.brightness, self.contrast, self.saturation, self.hue)
            x = color.random_color_jitter(u["jitter"], x, self.jitter, *(self.jitter_strength * r for r in ranges))
        if not _off(self.gray):
            x = color.random_grayscale(u["gray"], x, self.gray)
        if not _off(self.blur):
            x = color.random_gaussian_blur(u["blur"], x, self.blur, self.blur_sigma)
        if not _off(self.solarize):
            x = color.random_solarize(u["solarize"], x, self.solarize, self.solarize_threshold)
        if not _off(self.cutout):
            x = geometry.random_cutout(u["cutout"], x, self.cutout, self.cutout_size)
        if not _off(self.noise):
            x = color.random_noise(fold_in(keys, 1), x, self.noise, self.noise_std)
        return x


_DRAWS = {
    "crop": 2 * geometry.ATTEMPTS + 2,
    "flip": 1,
    "rotate": 2,
    "jitter": 5,
    "gray": 1,
    "blur": 2,
    "solarize": 1,
    "cutout": 3,
}
"""Number of uniform draws that each operation takes for an example."""


def _with_default(name: str, default: float) -> Any:
    """Returns the field `name` of `Augment` with another default, and with the same bounds and `doc`."""
    return dataclasses.field(default=default, metadata=schema.keys(Augment)[name].metadata)


@dataclasses.dataclass(frozen=True)
class ContrastiveAugment(Augment):
    """`Augment` with the defaults of SimCLR (Chen et al. 2020, appendix A)."""

    flip: float = _with_default("flip", 0.5)
    jitter: float = _with_default("jitter", 0.8)
    gray: float = _with_default("gray", 0.2)
    blur: float = _with_default("blur", 0.5)


@dataclasses.dataclass(frozen=True)
class Single:
    """One view: (keys [B], images [B, H, W, C] in [0, 1]) -> [B, h, w, C]. By default the unchanged image.

    All pipelines take an optional third argument, the aspect [B] of squeezed pictures; see `Augment`.
    """

    size: int | None = setting(None, gt=0, doc="side of the view in pixels; None: the size of the images")
    crop_scale: tuple[float, float] = setting(
        (1.0, 1.0), gt=0, le=1, doc="range of the share of the image area that a crop covers; (1, 1): no crop"
    )
    augment: Augment = setting(Augment(), doc="operations after the crop")

    def validate(self) -> None:
        _ordered("crop_scale", self.crop_scale)

    def __call__(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None = None) -> jax.Array:
        size = _size(self.size, images)
        return self.augment(keys, images, size, self.crop_scale, aspect)


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """Two independent views: (keys [B], images [B, H, W, C] in [0, 1]) -> [B, 2, h, w, C]."""

    size: int | None = setting(None, gt=0, doc="side of the views in pixels; None: the size of the images")
    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0), gt=0, le=1, doc="range of the share of the image area that a crop covers; (1, 1): no crop"
    )
    augment: ContrastiveAugment = setting(ContrastiveAugment(), doc="operations on the first view")
    second: ContrastiveAugment | None = setting(
        None, doc="operations on the second view (BYOL: blur 0.1, solarize 0.2); None: as `augment`"
    )

    def validate(self) -> None:
        _ordered("crop_scale", self.crop_scale)

    def __call__(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None = None) -> jax.Array:
        augments = [self.augment, self.augment if self.second is None else self.second]
        return _views(keys, 0, (images, aspect), augments, _size(self.size, images), self.crop_scale)


# Shared by the three recipes of DINO (Caron et al. 2021, section 3.2, after BYOL); the recipe of small crops.
_DINO = ContrastiveAugment(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Large and small crops (Caron et al. 2020, 2021), by default with the recipes of DINO's code.

    `augment` sets the operations on the first large crop, `second` on the other large crops, `local` on the small
    crops.

    (keys [B], images [B, H, W, C] in [0, 1]) -> {"global": [B, G, h, w, C], "local": [B, L, s, s, C]}; "local" is
    absent if `local_crops` is 0.
    """

    global_crops: int = setting(2, ge=1, doc="number of large crops of each image")
    local_crops: int = setting(8, ge=0, doc="number of small crops of each image")
    size: int | None = setting(None, gt=0, doc="side of the large crops in pixels; None: the size of the images")
    local_size: int | None = setting(
        None, gt=0, doc="side of the small crops in pixels; None: half the side of the large crops"
    )
    global_scale: tuple[float, float] = setting(
        (0.4, 1.0), gt=0, le=1, doc="range of the share of the image area that a large crop covers"
    )
    local_scale: tuple[float, float] = setting(
        (0.05, 0.4), gt=0, le=1, doc="range of the share of the image area that a small crop covers"
    )
    augment: ContrastiveAugment = setting(
        dataclasses.replace(_DINO, blur=1.0), doc="operations on the first large crop"
    )
    second: ContrastiveAugment | None = setting(
        dataclasses.replace(_DINO, blur=0.1, solarize=0.2),
        doc="operations on the other large crops; None: as `augment`",
    )
    local: ContrastiveAugment | None = setting(_DINO, doc="operations on the small crops; None: as `augment`")

    def validate(self) -> None:
        _ordered("global_scale", self.global_scale)
        _ordered("local_scale", self.local_scale)

    def __call__(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None = None) -> dict[str, jax.Array]:
        size = _size(self.size, images)
        later = self.augment if self.second is None else self.second
        augments = [self.augment] + [later] * (self.global_crops - 1)
        out = {"global": _views(keys, 0, (images, aspect), augments, size, self.global_scale)}
        if self.local_crops:
            side = (size[0] // 2, size[1] // 2) if self.local_size is None else (self.local_size, self.local_size)
            augments = [self.augment if self.local is None else self.local] * self.local_crops
            out["local"] = _views(keys, self.global_crops, (images, aspect), augments, side, self.local_scale)
        return out


def _views(
    keys: jax.Array,
    first: int,
    pictures: tuple[jax.Array, jax.Array | None],
    augments: Sequence[Augment],
    size: tuple[int, int],
    scale: tuple[float, float],
) -> jax.Array:
    """Returns views [B, V, h, w, C] of pictures (images, aspect or None).

    View v of row i is augments[v] with key fold_in(keys[i], first + v).
    """
    b = pictures[0].shape[0]
    # Views with the same operations are computed together; they are compared by identity, since fields may be traced.
    groups = [[v for v, a in enumerate(augments) if a is one] for one in {id(a): a for a in augments}.values()]
    made = []
    for group in groups:
        # [B, V] is flattened with examples outermost, so that a sharded batch is not moved between devices.
        view_keys = jax.vmap(fold_in, (None, 0), out_axes=1)(keys, first + jnp.array(group)).reshape(-1)
        images, aspect = jax.tree.map(lambda x, n=len(group): jnp.repeat(x, n, axis=0), pictures)
        views = augments[group[0]](view_keys, images, size, scale, aspect)
        made.append(views.reshape(b, len(group), *views.shape[1:]))
    if len(made) == 1:
        return made[0]
    return jnp.concatenate(made, axis=1)[:, np.argsort(np.concatenate(groups))]


def _size(size: int | None, images: jax.Array) -> tuple[int, int]:
    return (images.shape[1], images.shape[2]) if size is None else (size, size)


def _off(probability: Any) -> bool:
    # A traced probability (in a sweep) is unknown at compile time, so the operation stays in the program.
    return isinstance(probability, int | float) and probability == 0


def _ordered(name: str, values: tuple[float, float]) -> None:
    if values[0] > values[1]:
        raise ValueError(f"{name}: got {values}, must be (low, high) with low <= high")
