"""Pictures of every mode of Pillow as 8-bit grey or RGB: upright, without transparency, scaled from 16 bits.

The right value of a picture is what a viewer shows on a white page. A mode without a range of values has none, and is
refused.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "white"  # transparent pixels show the page on which a picture lies

_ORIENTATION, _PHOTOMETRIC = 0x0112, 262  # tags of EXIF and of TIFF
_PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "HSV", "LAB", "YCbCr"}
_WITH_ALPHA = {"La": "LA", "LA": "LA", "PA": "PA", "RGBa": "RGBA", "RGBA": "RGBA"}  # mode -> not premultiplied
_WIDE = {"I;16", "I;16B", "I;16L", "I;16N"}


class UndefinedRangeError(ValueError):
    """Values of a picture that no range maps to grey levels."""


def to_pixels(image: "Image", mode: str) -> "Image":
    """Returns a picture in 8 bits a channel.

    16-bit grey is divided by 257 and rounded, so that 65535 becomes 255. 16-bit colour arrives from Pillow as its upper
    8 bits. Transparent pixels are composited on white. The orientation that EXIF states is applied. The first frame of
    an animation is taken. CMYK, YCbCr, HSV and LAB become sRGB by Pillow's formulas, without colour profiles.

    Args:
        image: an opened picture of any mode.
        mode: "RGB", or "L" for grey (ITU-R 601-2 luma).

    Raises:
        UndefinedRangeError: the mode has no defined range of values (32-bit integers, floats).
        Exception: the file is damaged; Pillow raises many types.
    """
    key = image.info.get("transparency")
    # Of 16-bit colour, Pillow reads the upper 8 bits of the pixels, but all bits of the colour that is transparent.
    if isinstance(key, tuple) and any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    image = _upright(image)
    # Pillow scales values of PPM files to 65535; earlier versions open 16-bit PNG files as 32-bit integers.
    if image.mode in _WIDE or (image.mode == "I" and image.format in ("PPM", "PNG")):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        image = _on_background(image)
    elif image.mode not in _PLAIN:
        raise UndefinedRangeError(
            f"its values are of Pillow's mode {image.mode!r}, which has no defined range; convert it to 8 or 16 bits"
        )
    # LAB converts to RGB only. `convert` to the same mode would copy.
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _upright(image: "Image") -> "Image":
    """Returns a picture turned and mirrored as its EXIF data state, with its format and transparency."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, for which Pillow raises many types, state no orientation
        orientation = 1
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()  # Pillow applies the orientation of a TIFF here, and deletes the tag
    if image.format == "TIFF" or orientation not in turns:
        return image
    turned = image.transpose(turns[orientation])
    turned.format = image.format
    return turned


def _from_16_bits(image: "Image") -> "Image":
    """Returns a grey picture of values 0..65535 as one of 0..255, with an alpha channel if it states a transparency."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # TIFF's "white is zero", which Pillow inverts for 8 bits only
        grey = 255 - grey
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _on_background(image: "Image") -> "Image":
    """Returns an RGB picture: `image` on `BACKGROUND`."""
    from PIL import Image

    # In two steps: Pillow converts premultiplied modes to their plain form only.
    rgba = image.convert(_WITH_ALPHA.get(image.mode, image.mode)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), rgba).convert("RGB")
