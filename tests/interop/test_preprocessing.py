"""Preparation of pictures: equal to the image processors of `transformers`, and refused where it could not be."""

import json

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.interop.preprocessing import read_preparation

CASES = {
    "defaults of ViT": {"image_processor_type": "ViTImageProcessor"},
    "defaults of DeiT": {"image_processor_type": "DeiTImageProcessor"},
    "defaults of BEiT": {"image_processor_type": "BeitImageProcessor"},
    "defaults of SigLIP": {"image_processor_type": "SiglipImageProcessor"},
    "defaults of CLIP": {"image_processor_type": "CLIPImageProcessor"},
    "defaults of DINOv2": {"image_processor_type": "BitImageProcessor"},
    "early": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 9, "crop_size": 8},
    "both sides": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 7, "width": 10}, "resample": 3},
    "other filter": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 9}, "resample": 1},
    "crop beyond": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 5}, "crop_size": 8},
    "crop odd": {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 5},
    "own numbers": {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.5},
    "without": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
}


@pytest.fixture
def read(tmp_path):
    def read(settings):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        return read_preparation(tmp_path)

    return read


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(20, 12), (9, 31)])
def test_pixels_are_those_of_transformers(name, size, read, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    settings = CASES[name]
    kind = settings.get("image_processor_type", "CLIPImageProcessor").removesuffix("Fast")
    got = read(settings)(image)
    with_pillow = getattr(transformers, f"{kind}Pil").from_pretrained(tmp_path)
    np.testing.assert_allclose(got, with_pillow(image)["pixel_values"][0], rtol=1e-5, atol=1e-6)


def test_the_steps_one_by_one(read):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    common = {"image_processor_type": "CLIPImageProcessor", "do_resize": False}
    settings = {**common, "crop_size": {"height": 2, "width": 2}, "image_mean": [0.5], "image_std": [2.0]}
    got = read(settings)(image)
    np.testing.assert_allclose(got, (np.array([[[8, 9], [14, 15]]]) / 255 - 0.5) / 2, rtol=1e-6)
    assert got.dtype == np.float32
    wide = read({**common, "crop_size": {"height": 6, "width": 2}, "do_normalize": False, "do_rescale": False})(image)
    np.testing.assert_array_equal(wide[0, :, 0], [0, 2, 8, 14, 20, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "OwlImageProcessor"}, r"image_processor_type: 'OwlImageProcessor' is not supported"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, r"do_pad: True is not supported"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}},
            r"size: got \{'longest_edge': 9\}, must be a number, height and width",
        ),
    ],
)
def test_what_cannot_be_repeated_is_refused(settings, message, read):
    with pytest.raises(UserError, match=message) as error:
        read(settings)
    assert "\n" not in str(error.value)


def test_a_folder_without_settings(tmp_path):
    with pytest.raises(UserError, match=r"has no preprocessor_config.json, which says how"):
        read_preparation(tmp_path)
