"""Preparation of pictures as the image processors of `transformers` do it with Pillow, read from a folder's files."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

_HALF = [0.5, 0.5, 0.5]
_CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_PLAIN: dict[str, Any] = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
_PLAIN |= {"rescale_factor": 1 / 255}
_PLAIN |= {"size": 224, "crop_size": 224, "resample": 3, "image_mean": _HALF, "image_std": _HALF}
# Image processors and their defaults; the size of those in _BY_EDGE, if it is one number, is that of the shorter edge.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {**_PLAIN, "resample": 2},
    "DeiTImageProcessor": {**_PLAIN, "size": 256, "do_center_crop": True},
    "BeitImageProcessor": _PLAIN,
    "SiglipImageProcessor": _PLAIN,
    "CLIPImageProcessor": {**_PLAIN, **_CLIP, "do_center_crop": True},
    "BitImageProcessor": {**_PLAIN, **_CLIP, "do_center_crop": True},
}
_BY_EDGE = ("CLIPImageProcessor", "BitImageProcessor")
_WITHOUT_EFFECT = ("do_convert_rgb", "do_reduce_labels")  # pictures have the channels of the model


class Preparation(NamedTuple):
    """The steps from a picture to the input of a model, in this order.

    Attributes:
        size: (height, width), or the length of the shorter edge; None: no resizing.
        resample: number of Pillow's filter.
        crop: (height, width) of the central part that is kept; None: all.
        factor: factor of the values 0..255.
        mean, std: per channel; None: no normalisation.
    """

    size: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, image: "Image") -> np.ndarray:
        """Returns the pixel values float32 [C, H, W] of a picture of mode L or RGB."""
        if self.size is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), self.resample)
        array = np.asarray(image)
        x_CxHxW = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if self.crop is not None:
            x_CxHxW = _central(x_CxHxW, self.crop)
        x_CxHxW = (x_CxHxW * self.factor).astype(np.float32)
        if self.mean is None:
            return x_CxHxW
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (x_CxHxW - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            assert self.size is not None
            return self.size
        short, long = sorted((height, width))
        longer = int(self.size * long / short)
        return (longer, self.size) if width <= height else (self.size, longer)


def read_preparation(folder: pathlib.Path) -> Preparation:
    """Returns the preparation that the image processor of a folder states.

    Raises:
        UserError: the folder has no settings of an image processor, or some that Pillow does not reproduce.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no preprocessor_config.json, which says how pictures are prepared")
    stated = read_json(path)
    name = str(stated.get("image_processor_type") or stated.get("feature_extractor_type"))
    kind = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        raise UserError(f"{path}: image_processor_type: {name!r} is not supported ({', '.join(_DEFAULTS)})")
    values = {**_DEFAULTS[kind], **{key: value for key, value in stated.items() if value is not None}}
    for key, value in stated.items():
        if key.startswith("do_") and value and key not in _PLAIN and key not in _WITHOUT_EFFECT:
            raise UserError(f"{path}: {key}: {value!r} is not supported")
    mean, std = (values[key] if values["do_normalize"] else None for key in ("image_mean", "image_std"))
    return Preparation(
        size=_size(values["size"], f"{path}: size", kind in _BY_EDGE) if values["do_resize"] else None,
        resample=values["resample"],
        crop=_pair(values["crop_size"], f"{path}: crop_size") if values["do_center_crop"] else None,
        factor=values["rescale_factor"] if values["do_rescale"] else 1.0,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )


def _size(size: Any, key: str, by_edge: bool) -> tuple[int, int] | int:
    """Returns (height, width), or the length of the shorter edge."""
    if isinstance(size, int) and by_edge:
        return size
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    return _pair(size, key)


def _pair(size: Any, key: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise UserError(f"{key}: got {size!r}, must be a number, height and width, or for `size` the shortest_edge")


def _central(x_CxHxW: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Returns the central part of a picture; beyond its edges there are zeros."""
    height, width = x_CxHxW.shape[1:]
    if height < size[0] or width < size[1]:
        whole = max(height, size[0]), max(width, size[1])
        before = [-(-(new - old) // 2) for new, old in zip(whole, (height, width))]
        after = [new - old - first for new, old, first in zip(whole, (height, width), before)]
        x_CxHxW = np.pad(x_CxHxW, ((0, 0), *zip(before, after)))
        # `transformers` counts the place of the part from the edge of the picture before it is padded.
        top, left = ((old - cut) // 2 + first for old, cut, first in zip((height, width), size, before))
    else:
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return x_CxHxW[:, top : top + size[0], left : left + size[1]]
