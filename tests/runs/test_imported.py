"""`ssljax embed` on a folder in the Hugging Face format: the features that `transformers` computes."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image

from ssljax import runs

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {**SIZE, "image_size": 8, "patch_size": 4}
WORDS = ("<pad>", "<s>", "</s>", "<unk>", *["one", "small", "step", "for", "a", "model"])


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, size in enumerate([(12, 20, 3), (20, 12, 3), (9, 9, 3)]):
        path = folder / ("ant" if i % 2 else "bee") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Four texts of different lengths with labels, as lines of JSON."""
    path = tmp_path_factory.mktemp("texts") / "x.jsonl"
    lines = ["one step", "a small step for a model", "model", "for one small model"]
    path.write_text("".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(lines)))
    return path, lines


def saved(transformers, model, folder, processor=None, affixes=()):
    """Writes a model with a tokenizer of words, or with an image processor."""
    model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if affixes:
        pairs = [(text, WORDS.index(text)) for text in affixes]
        template = " ".join((affixes[0], "$A", *affixes[1:]))
        words.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=pairs)
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


IMAGES = {
    "vit": ("ViT", {}, "pooled", {"image_processor_type": "ViTImageProcessor", "size": 8}),
    "dinov2": ("Dinov2", {}, "first", {"image_processor_type": "BitImageProcessor", "size": 9, "crop_size": 8}),
    "ijepa": ("IJepa", {}, "pooled", {"image_processor_type": "ViTImageProcessor", "size": 8, "resample": 3}),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name, transformers, pictures, tmp_path):
    import torch

    torch.manual_seed(0)
    cls, keys, feature, processor = IMAGES[name]
    model = getattr(transformers, f"{cls}Model")(getattr(transformers, f"{cls}Config")(**PICTURES, **keys))
    saved(transformers, model, tmp_path, processor)
    embedded = runs.embed(tmp_path, f"images:{pictures}", feature=feature, batch_size=2)
    assert embedded.names == ["ant/1.png", "bee/0.png", "bee/2.png"] and embedded.labels.tolist() == [0, 1, 1]
    prepare = getattr(transformers, f"{processor['image_processor_type']}Pil").from_pretrained(tmp_path)
    pixels = prepare([Image.open(pictures / name) for name in embedded.names], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**pixels)
    want = outputs.last_hidden_state[:, 0] if feature == "first" else getattr(outputs, "pooler_output", None)
    want = outputs.last_hidden_state.mean(1) if want is None else want
    np.testing.assert_allclose(embedded.features, want.numpy(), rtol=1e-4, atol=1e-5)


TEXTS = {
    "bert": ("Bert", {}, "pooled", ("<s>", "</s>")),
    "distilbert": ("DistilBert", {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 1}, "pooled", ("<s>", "</s>")),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2}, "last", ()),
    "llama": ("Llama", {"max_position_embeddings": 32}, "mean", ("<s>",)),
    "t5": ("T5", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, "mean", ()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, transformers, texts, tmp_path):
    import torch

    torch.manual_seed(0)
    cls, keys, feature, affixes = TEXTS[name]
    sizes = SIZE if name in ("bert", "llama") else {}
    config = getattr(transformers, f"{cls}Config")(vocab_size=len(WORDS), pad_token_id=0, **sizes, **keys)
    model = getattr(transformers, f"{cls}Model")(config)
    saved(transformers, model, tmp_path, affixes=affixes)
    path, lines = texts
    embedded = runs.embed(tmp_path, f"jsonl:{path}", feature=feature, batch_size=3)
    assert embedded.labels.tolist() == [0, 1, 0, 1] and embedded.names[1].endswith("x.jsonl:2")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    reader = model.get_encoder() if name == "t5" else model
    for line, got in zip(lines, embedded.features):
        ids = tokenizer(line, return_tensors="pt").input_ids
        with torch.no_grad():
            outputs = reader(input_ids=ids)
        states = outputs.last_hidden_state[0]
        pooled = getattr(outputs, "pooler_output", None)
        want = states[-1] if feature == "last" else states.mean(0)
        want = pooled[0] if feature == "pooled" and pooled is not None else want
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_pair_of_towers(transformers, pictures, texts, tmp_path):
    import torch

    torch.manual_seed(0)
    text = {**SIZE, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 9, "pad_token_id": 0}
    config = transformers.CLIPConfig(vision_config=PICTURES, text_config=text, projection_dim=8)
    model = transformers.CLIPModel(config)
    saved(transformers, model, tmp_path, affixes=("<s>", "model"))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 8}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = runs.embed(tmp_path, f"images:{pictures}"), runs.embed(tmp_path, f"jsonl:{texts[0]}")
    prepare = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    with torch.no_grad():
        pixels = prepare([Image.open(pictures / name) for name in found[0].names], return_tensors="pt")
        image = model.visual_projection(model.vision_model(**pixels).pooler_output)
        ids = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)(texts[1][0], return_tensors="pt").input_ids
        words = model.text_projection(model.text_model(ids).pooler_output)
    np.testing.assert_allclose(found[0].features, image.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1].features[0], words[0].numpy(), rtol=1e-4, atol=1e-5)
