"""Cards of exports: the Python on a card, run in the exported folder, gives the features of `ssljax embed`."""

import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_objectives
from PIL import Image

from ssljax import data, objectives
from ssljax.data.tokenizers import ByteTokenizer
from ssljax.evals import prompts
from ssljax.evals.generation import Sampling
from ssljax.interop.export import of_module
from ssljax.runs.card import describe
from ssljax.runs.export import write_trained
from ssljax.runs.trained import Trained

TEXT = "a small step </s> <pad>"  # special tokens that are spelled are text
LENGTH = 32


def lines(folder):
    """The names that the code of a card defines, run in its folder."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def untrained(groups, folder, mode="documents", shape=(8, 8, 3), random=True, **keys):
    """A model with random parameters, as if it had been read from a workdir with the tokenizer of bytes."""
    folder.mkdir()
    ByteTokenizer().save(folder / "tokenizer.json")
    tokens = {key: {"shape": [LENGTH], "dtype": "int32"} for key in ("tokens", "segment_ids", "positions")}
    image = {"image": {"shape": list(shape), "dtype": "uint8"}, "label": {"shape": [], "dtype": "int32"}}
    if len(shape) == 2:
        image["spectrogram"] = {**image.pop("image"), "dtype": "float32"}
    special = ByteTokenizer().special_ids
    text = {"vocab_size": 260, "special_ids": special, "max_len": LENGTH, "tokens": 8 * LENGTH}
    spec = data.DataSpec({**image, **tokens}, 8, num_classes=3, **text)
    objective = objectives.create(groups, spec, 10)
    params, extra = variables(objective, random)
    source = {"source": "npz:pairs.npz", "split": "train", "mixture": [], "mode": mode, "image_fit": "center", **keys}
    config = {**groups, "data": {**source, "tokenizer": {"name": "bytes"}}, "steps": 10, "ema": None}
    return Trained(objective, params, extra, 7, config, {}, folder)


def variables(objective, random):
    """Random parameters, of which no bias is 0; or zeros, which need no compilation."""

    def init():
        return nn.unbox(objective.init(jax.random.key(0), batch(objective)))

    if not random:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(init))
    params, extra = jax.jit(init)()
    key = jax.random.key(1)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), params), extra


def batch(objective, picture=None, text=TEXT):
    """A batch of one picture (the square of it, as the data prepare it) and one text."""
    rows = ByteTokenizer().encode_rows([text], LENGTH)
    name = "image" if "image" in objective.spec.elements else "spectrogram"
    shape = objective.spec.elements[name]["shape"]
    pixels = np.zeros((1, *shape), np.uint8) if picture is None else prepared(picture, shape)
    return objective.prepare({**rows, name: pixels})


def prepared(path, shape):
    """A picture of 20 x 12 pixels as `data` prepares it: its central square, resized."""
    if len(shape) == 2:
        return np.load(path)[None]
    image = Image.open(path).convert("RGB" if shape[2] == 3 else "L")
    if shape[:2] == [8, 8]:
        image = image.crop((4, 0, 16, 12)).resize((8, 8), Image.BICUBIC)
    return np.asarray(image).reshape(1, *shape)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)).save(path)
    return path


def exported(groups, tmp_path, monkeypatch, **keys):
    """(the trained model, the names that the lines of its card define)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    trained = untrained(groups, tmp_path / "run", **keys)
    card = write_trained(trained, tmp_path / "out").card
    assert card.page() in (tmp_path / "out/README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    return trained, lines(tmp_path / "out")


def features(trained, picture, text):
    objective = trained.objective
    return jax.jit(objective.features)(trained.params, trained.extra, batch(objective, picture, text))


def same(got, want):
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


def check(trained, names, picture, text=TEXT):
    """Checks the features of a picture, or of a text if the model reads no pictures."""
    found = features(trained, picture, text)
    same(names["embed"](picture if "processor" in names else text), found["pooled"])
    return found


@pytest.mark.parametrize("name", tiny_objectives.CONFIGS)
def test_the_lines_of_every_objective(name, tmp_path, monkeypatch, picture):
    trained, names = exported(tiny_objectives.config(name, bytes=True), tmp_path, monkeypatch)
    found = check(trained, names, picture)
    if "embed_text" in names:
        same(names["embed_text"](TEXT), found["text"])
    if "generate" in names:
        model = prompts.trained(trained)
        assert names["generate"]("a step", 8) == prompts.complete(model, ["a step"], Sampling(8))[0]


SIZE = {"preset": None, "width": 16, "depth": 1, "heads": 2}
# model, architecture, shape of the pictures
IMAGES = {
    "mean": ({"name": "vit", "pool": "mean", "positions": "sincos"}, "ijepa", (8, 8, 3)),
    "mean of grey": ({"name": "vit", "pool": "mean"}, "ijepa", (8, 8, 1)),
    "attention": ({"name": "vit", "pool": "map"}, "siglip_vision_model", (8, 8, 3)),
    "two tokens": ({"name": "deit"}, "deit", (8, 8, 3)),
    "norm after": ({"name": "beit", "norm_after_pool": True}, "beit", (8, 8, 3)),
    "registers": ({"name": "dinov2", "registers": 2}, "dinov2_with_registers", (8, 8, 3)),
    "no square": ({"name": "vit"}, "vit", (12, 20, 3)),
    "rotary": ({"name": "dinov3", "registers": 1}, "dinov3_vit", (8, 8, 1)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_pooling_of_images(name, tmp_path, monkeypatch, picture):
    model, architecture, shape = IMAGES[name]
    groups = {"model": {**SIZE, "patch_size": 4, **model}, "objective": {"name": "classification", "mean": [0.4]}}
    trained, names = exported(groups, tmp_path, monkeypatch, shape=shape)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == architecture
    check(trained, names, picture)


def test_spectrograms(tmp_path, monkeypatch):
    model = {**SIZE, "name": "ast", "patch_size": 4, "strides": [3, 3]}
    groups = {"model": model, "objective": {"name": "classification", "mean": [-4.0], "std": [3.0]}}
    trained, names = exported(groups, tmp_path, monkeypatch, shape=(16, 8))
    values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    np.save("values.npy", values)
    same(names["embed"](values), features(trained, "values.npy", TEXT)["pooled"])


# model, mode of the text
TEXTS = {
    "pooler": ({"name": "bert", "extras": ["pooler"], "token_types": 2}, "documents"),
    "first": ({"name": "modernbert", "pool": "first"}, "windows"),
    "last": ({"name": "llama"}, "documents"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_pooling_of_texts(name, tmp_path, monkeypatch):
    model, mode = TEXTS[name]
    groups = {"model": {**SIZE, **model}, "objective": {"name": "causal_lm" if name == "last" else "mlm"}}
    trained, names = exported(groups, tmp_path, monkeypatch, mode=mode)
    if mode == "documents":
        for text in (TEXT, TEXT * 9):  # the second is cut
            check(trained, names, None, text)
        return
    tokens = np.append(np.frombuffer(TEXT.encode(), np.uint8), ByteTokenizer().special_ids["eos"])[None]
    want = jax.jit(trained.objective.features)(trained.params, trained.extra, {"tokens": tokens.astype(np.int32)})
    same(names["embed"](TEXT), want["pooled"])


def test_the_facts_of_a_card(tmp_path):
    groups = {"model": {**SIZE, "name": "vit", "patch_size": 4, "pool": "mean"}, "objective": {"name": "simclr"}}
    groups["objective"] |= {"mean": [0.1], "std": [0.3]}
    trained = untrained(groups, tmp_path / "run", shape=(8, 8, 1), random=False, image_fit="squeeze")
    card = describe(trained._replace(config={**trained.config, "ema": 0.9}), model_of(trained))
    compile(card.code, "README.md", "exec")
    facts = card.facts
    assert facts["objective"] == "simclr, on npz:pairs.npz [train]"
    assert facts["checkpoint"].startswith("step 7, run ") and facts["weights"] == "averaged (`ema` 0.9)"
    assert facts["architecture"].startswith("`ijepa` (IJepaModel) for the model `vit`: its configuration, read back")
    assert facts["left out"].endswith("projector")
    assert "grey images of 8 x 8" in facts["input"] and facts["input"].endswith("(x - 0.1) / 0.3")
    assert "their pixels differ a little" in facts["preparation"]
    assert facts["features"] == "the mean of the patch tokens after the final norm"
    assert "for you to choose" in facts["licence"]


def test_the_teacher_is_named(tmp_path):
    trained = untrained(tiny_objectives.config("dino"), tmp_path / "run", random=False)
    assert "teacher" in describe(trained, model_of(trained)).facts["weights"]


def model_of(trained):
    return of_module(trained.objective.model, trained.model_params, False)
