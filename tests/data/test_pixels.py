"""Pictures of every mode of Pillow have the pixels that a viewer shows, or are refused in one line."""

import io
import logging
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import load_split
from ssljax.data.pixels import UndefinedRangeError, to_pixels

GREY = np.array([[0, 1, 128, 254], [255, 77, 3, 200]], np.uint8)
ALPHA = np.array([[0, 255, 128, 64], [255, 0, 200, 1]], np.uint8)
COLOR = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)
WIDE = GREY.astype(np.uint16) * 257 + np.array([[0, 5, -5, 128], [0, 0, 0, -128]])


def on_white(values, alpha):
    """`values` [H, W, C] over white in float64: alpha v + (1 - alpha) 255."""
    a = alpha[..., None] / 255
    return a * values + (1 - a) * 255


def rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def cmyk_to_rgb(cmyk):
    """The definition: each of R, G, B is (1 - ink) (1 - black)."""
    inks, black = cmyk[..., :3] / 255, cmyk[..., 3:] / 255
    return 255 * (1 - inks) * (1 - black)


def ycbcr_to_rgb(ycbcr):
    """JFIF's equations, from full-range values."""
    y, cb, cr = np.moveaxis(ycbcr.astype(float), 2, 0)
    cb, cr = cb - 128, cr - 128
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2), 0, 255)


def hsv_image():
    return Image.merge("HSV", [Image.fromarray(np.full((2, 4), v, np.uint8)) for v in (85, 255, 255)])


def premultiplied(bands, mode):
    return Image.merge(mode.upper(), [Image.fromarray(b) for b in bands]).convert(mode)


def palette():
    image = Image.frombytes("P", (4, 2), bytes(range(8)))
    image.putpalette(COLOR.reshape(-1).tolist())
    return image


def pa():
    image = Image.new("PA", (4, 2))
    image.putpalette(COLOR.reshape(-1).tolist())
    for row in range(2):
        for column in range(4):
            image.putpixel((column, row), (4 * row + column, int(ALPHA[row, column])))
    return image


def wide(mode):
    return Image.frombytes(mode, (4, 2), WIDE.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


RGBA = np.concatenate([COLOR, ALPHA[..., None]], axis=2)
CMYK = np.random.default_rng(1).integers(0, 256, (2, 4, 4), np.uint8)
BITS = GREY > 100
LAB = np.array([[[255, 128, 128], [0, 128, 128], [138, 128, 128], [137, 208, 195]]] * 2, np.uint8)  # L 0..255, a+128
LAB_RGB = np.array([[[255, 255, 255], [0, 0, 0], [129, 129, 129], [255, 0, 0]]] * 2)

# mode -> (picture, its RGB values, tolerance); None: refused
CASES = {
    "1": (lambda: Image.fromarray(BITS), rgb(BITS * 255), 0),
    "L": (lambda: Image.fromarray(GREY), rgb(GREY), 0),
    "LA": (lambda: Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), on_white(rgb(GREY), ALPHA), 1),
    "La": (lambda: premultiplied([GREY, ALPHA], "La"), on_white(rgb(GREY), ALPHA), 2),
    "P": (palette, COLOR, 0),
    "PA": (pa, on_white(COLOR, ALPHA), 1),
    "RGB": (lambda: Image.fromarray(COLOR), COLOR, 0),
    "RGBA": (lambda: Image.fromarray(RGBA), on_white(COLOR, ALPHA), 1),
    "RGBa": (lambda: premultiplied([*np.moveaxis(RGBA, 2, 0)], "RGBa"), on_white(COLOR, ALPHA), 2),
    "RGBX": (lambda: Image.fromarray(RGBA).convert("RGBX"), COLOR, 0),
    "CMYK": (lambda: Image.frombytes("CMYK", (4, 2), CMYK.tobytes()), cmyk_to_rgb(CMYK), 1),
    "YCbCr": (lambda: Image.frombytes("YCbCr", (4, 2), COLOR.tobytes()), ycbcr_to_rgb(COLOR), 1),
    "HSV": (hsv_image, np.broadcast_to([0, 255, 0], (2, 4, 3)), 1),
    "LAB": (lambda: Image.frombytes("LAB", (4, 2), (LAB ^ [0, 128, 128]).astype(np.uint8).tobytes()), LAB_RGB, 12),
    "I;16": (lambda: wide("I;16"), rgb(np.rint(WIDE / 257)), 0),
    "I;16L": (lambda: wide("I;16L"), rgb(np.rint(WIDE / 257)), 0),
    "I;16B": (lambda: wide("I;16B"), rgb(np.rint(WIDE / 257)), 0),
    "I;16N": (lambda: wide("I;16N"), rgb(np.rint(WIDE / 257)), 0),
    "I": (lambda: Image.fromarray(GREY.astype(np.int32)), None, 0),
    "F": (lambda: Image.fromarray(GREY.astype(np.float32)), None, 0),
}


def test_every_mode_of_pillow_has_a_case():
    assert set(Image.MODES) == set(CASES)


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_has_the_right_pixels_or_is_refused(mode):
    make, expected, tolerance = CASES[mode]
    image = make()
    assert image.mode == mode
    if expected is None:
        for target in ("RGB", "L"):
            with pytest.raises(UndefinedRangeError, match=rf"mode '{mode}', which has no defined range"):
                to_pixels(image, target)
        return
    found = np.asarray(to_pixels(image, "RGB")).astype(int)
    np.testing.assert_allclose(found, expected, atol=tolerance + 0.5)
    grey = np.asarray(to_pixels(make(), "L")).astype(int)
    np.testing.assert_allclose(grey, found @ [0.299, 0.587, 0.114], atol=1)


# ---- files


@pytest.fixture
def pixels(config, tmp_path):
    """Returns a function that writes one picture into a folder and reads it through the source `images:`."""

    def read(image, name="a.png", **options):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name, **options)
        return load_split(config(source=f"images:{folder}"), "train")["image"][0].astype(int)

    return read


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_files_are_scaled(pixels, name):
    """Before: every value above 255 turned white."""
    np.testing.assert_array_equal(pixels(Image.fromarray(WIDE.astype(np.uint16)), name), rgb(np.rint(WIDE / 257)))


def test_16_bit_files_of_tiff_with_white_as_zero(pixels):
    found = pixels(Image.fromarray(WIDE.astype(np.uint16)), "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(found, rgb(255 - np.rint(WIDE / 257)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_range_are_refused(pixels, dtype):
    """Before: a float TIFF with values 0..1 turned black."""
    with pytest.raises(UserError, match=r"^data\.source: cannot use image .*a\.tif \(its values are of .* '[FI]'"):
        pixels(Image.fromarray((GREY / 255).astype(dtype)), "a.tif")


def test_transparency_shows_white(pixels):
    """Before: transparent pixels showed the color that lies under them."""
    np.testing.assert_allclose(pixels(Image.fromarray(RGBA)), on_white(COLOR, ALPHA), atol=1.5)
    np.testing.assert_allclose(pixels(Image.fromarray(RGBA), "a.webp", lossless=True, exact=True)[ALPHA == 0], 255)
    indexed = COLOR.astype(int).copy()
    indexed[0, 3] = 255
    np.testing.assert_array_equal(pixels(palette(), "a.png", transparency=3), indexed)
    np.testing.assert_array_equal(pixels(palette(), "a.gif", transparency=3), indexed)
    for image, key, at in (
        (Image.fromarray(GREY), 77, (1, 1)),
        (Image.fromarray(COLOR), tuple(COLOR[1, 1].tolist()), (1, 1)),
        (Image.fromarray(WIDE.astype(np.uint16)), int(WIDE[1, 1]), (1, 1)),
    ):
        plain = pixels(image)
        assert (plain[at] != 255).any()
        plain[at] = 255
        np.testing.assert_array_equal(pixels(image, transparency=key), plain)


def png_of_16_bits(values, transparent):
    """A PNG file of 16-bit RGB, which Pillow cannot write, with one transparent colour."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">HHH", *transparent)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in [*chunks, (b"IEND", b"")])


def test_16_bit_colour_and_its_transparent_colour(pixels):
    values = np.random.default_rng(2).integers(0, 65536, (2, 4, 3))
    expected = values / 257
    expected[1, 2] = 255
    np.testing.assert_allclose(pixels(png_of_16_bits(values, values[1, 2])), expected, atol=1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(pixels, name, orientation):
    """The stored picture is made from the upright one by the inverse of each of EXIF's eight turns."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8], upright[8:, 24:] = (255, 0, 0), (0, 0, 255)  # all eight turns differ
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100, "subsampling": 0}}.get(name, {})
    if name == "a.tif":
        options = {"tiffinfo": {0x0112: orientation}}
    else:
        options["exif"] = exif
    np.testing.assert_allclose(pixels(image, name, **options), upright, atol=2)


def test_damaged_exif_data_do_not_lose_a_picture(pixels):
    content = io.BytesIO()
    Image.fromarray(COLOR).save(content, "PNG", exif=b"Exif\0\0no exif at all")
    np.testing.assert_array_equal(pixels(content.getvalue()), COLOR)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_is_taken_and_a_line_says_so(pixels, caplog, name):
    frames = [Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (10, 200)]
    options = {"lossless": True} if name == "a.webp" else {}
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ssljax"):
            found = pixels(frames[0], name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_allclose(found, 10, atol=1)
        assert [r.getMessage() for r in caplog.records if re.search(r"first frame .* of 1 images .*a\.", r.message)]
    with caplog.at_level(logging.WARNING, "ssljax"):
        caplog.clear()
        pixels(frames[0], "a.png")
    assert not caplog.records


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_truncated_files_are_refused_in_one_line(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file, kind)
    content = file.getvalue()
    for size in (0, 1, 10, 30, len(content) // 3, len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(UserError, match=r"^data\.source: corrupt image .*a\.png \([^\n]*\)$"):
            pixels(content[:size])
