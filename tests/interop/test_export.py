"""Models of ssljax written in the Hugging Face format and read again, and rewritten folders."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

import fixtures as parity_cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from daily import daily

from ssljax import cli, models, objectives, run, runs
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.data import DataSpec
from ssljax.interop import hf
from ssljax.interop.canonical import canonical
from ssljax.interop.export import groups, of_module
from ssljax.interop.families import REGISTRY
from ssljax.layers.masks import Causal, Full
from ssljax.models.clip import TextConfig
from ssljax.models.vit import ViTConfig
from ssljax.runs.export import export, with_ids

ROOT = pathlib.Path(__file__).parents[2]
PARITY = pathlib.Path(os.environ.get("SSLJAX_DATA", "missing")).parent / "hf_parity"
SIZE = {"preset": None, "width": 16, "depth": 2, "heads": 2}
WORDS = ("one", "small", "step", "for", "a", "model", "and", "a", "giant", "leap", "for", "its", "loss")
# name: (objective, model, the architecture that computes it)
CASES = {
    "gpt": ("causal_lm", {"name": "gpt"}, "gpt2"),
    "gpt_rotary": ("causal_lm", {"name": "gpt", "positions": "none", "rope_theta": 1e4}, "gpt_neox"),
    "gpt_parallel": (
        "causal_lm",
        {"name": "gpt", "positions": "none", "rope_theta": 1e4, "rope_fraction": 0.5, "norm_position": "parallel"},
        "gpt_neox",
    ),
    "llama": ("causal_lm", {"name": "llama", "kv_heads": 1}, "llama"),
    "gpt_as_llama": (
        "causal_lm",
        {"name": "gpt", "norm": "rms", "bias": False, "activation": "swiglu", "positions": "none", "rope_theta": 1e4}
        | {"tied": False},
        "llama",
    ),
    "opt": ("causal_lm", {"name": "opt"}, "opt"),
    "bert": ("mlm", {"name": "bert", "token_types": 2}, "bert"),
    "bert_without_types": ("mlm", {"name": "bert"}, "bert"),
    "bert_rotary": (
        "mlm",
        {"name": "bert", "positions": "none", "rope_theta": 1e4, "norm_position": "pre"},
        "esm",
    ),
    "roberta": ("mlm", {"name": "roberta"}, "roberta"),
    "albert": ("mlm", {"name": "albert", "embedding_dim": 8, "repeats": 2}, "albert"),
    "modernbert": ("mlm", {"name": "modernbert", "window": 5}, "modernbert"),
    "deberta": ("mlm", {"name": "deberta", "convolution": {}}, "deberta-v2"),
}


def config(objective, model, folder, **more):
    """A run of two steps on a few lines of text."""
    path = folder / "text.jsonl"
    if not path.exists():
        rng = np.random.default_rng(0)
        path.write_text("".join(json.dumps({"text": " ".join(rng.choice(WORDS, 12))}) + "\n" for _ in range(40)))
    return {
        "model": {**SIZE, **model},
        "objective": {"name": objective},
        "data": {"source": f"jsonl:{path}", "mode": "windows", "tokenizer": {"name": "bytes"}, "seq_len": 16},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "mesh": {"data": 8},
        "steps": 2,
        "batch_size": 8,
        "log": {"progress": False, "trackers": [], "pictures": False},
        **more,
    }


def logits(module, params, mask):
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 260, (3, 12)), jnp.int32)

    @jax.jit
    def forward(params):
        hidden = module.apply({"params": params}, tokens, mask=mask).tokens
        return module.apply({"params": params}, hidden, method="logits")

    return np.asarray(forward(params))[..., :260]


@pytest.mark.parametrize("name", daily(CASES, 6))
def test_a_model_that_is_written_and_read_again_is_the_same(name, tmp_path):
    objective, model, architecture = CASES[name]
    causal = objective == "causal_lm"
    built = schema.build_named(models.REGISTRY, {**SIZE, **model, "vocab_size": 260, "max_len": 16}, "model")
    module = built.standalone()
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0))["params"])
    hf.save(of_module(module, params, causal), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == architecture
    loaded, mask = hf.load(tmp_path), Causal() if causal else Full()
    want = logits(module, params, mask)
    np.testing.assert_array_equal(logits(loaded.module, loaded.variables["params"], mask), want)
    assert canonical(loaded.config) == canonical(module.config)


@pytest.mark.parametrize("name", daily(["gpt_rotary", "bert_without_types"], 2))
def test_an_exported_workdir_is_the_same_model(name, tmp_path):
    objective, model, architecture = CASES[name]
    run.train(config(objective, model, tmp_path), tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    learned, loaded = runs.read_trained(tmp_path / "run"), hf.load(tmp_path / "out")
    assert learned.step == 2 and not loaded.missing and not loaded.unused
    assert loaded.hf_config["model_type"] == architecture
    mask = Causal() if objective == "causal_lm" else Full()
    want = logits(learned.objective.model, learned.model_params, mask)
    np.testing.assert_array_equal(logits(loaded.module, loaded.variables["params"], mask), want)
    card = (tmp_path / "out/README.md").read_text()
    assert f"step 2, run {run.build(learned.config).hash()}" in card
    assert loaded.tokenizer.encode("a leap").ids == list(b"a leap")
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["pad_token"] == "<pad>" and settings["padding_side"] == "right"
    assert loaded.hf_config["pad_token_id"] == 256


IMAGES = {
    "class token": ({"name": "vit"}, "vit"),
    "fixed positions": ({"name": "vit", "positions": "sincos"}, "vit"),
    "mean": ({"name": "vit", "pool": "mean", "positions": "sincos"}, "ijepa"),
    "deit": ({"name": "deit"}, "deit"),
    "beit": ({"name": "beit", "pool": "cls"}, "beit"),
    "dinov2": ({"name": "dinov2", "registers": 2}, "dinov2_with_registers"),
    "dinov3": ({"name": "dinov3"}, "dinov3_vit"),
}


def an_encoder(name):
    """(module, parameters, what it becomes, images) of one of IMAGES."""
    model, architecture = IMAGES[name]
    built = schema.build_named(models.REGISTRY, {**SIZE, "patch_size": 4, **model}, "model")
    module = dataclasses.replace(built, image_shape=(8, 8, 3)).standalone()
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0))["params"])
    return module, params, architecture, jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@pytest.mark.parametrize("name", IMAGES)
def test_an_encoder_of_images(name, tmp_path):
    module, params, architecture, images = an_encoder(name)
    hf.save(of_module(module, params, False), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == architecture and config["architectures"][0].count("Model") == 1
    loaded = hf.load(tmp_path)
    want, got = (
        jax.jit(lambda p, m=m: m.apply({"params": p}, images))(p)
        for m, p in ((module, params), (loaded.module, loaded.variables["params"]))
    )
    np.testing.assert_allclose(got.tokens, want.tokens, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.pooled, want.pooled, rtol=1e-6, atol=1e-6)


def pairs(folder, tokenizer, seq_len=16, **image):
    """A run of two steps on a few images and their names."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, 3))}) + "\n" for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(lines))
    np.savez(folder / "images.npz", image=rng.integers(0, 255, (40, 8, 8, 3), np.uint8))
    tower = {**SIZE, "patch_size": 4, **image}
    values = config("clip", {}, folder)
    values["model"] = {"name": "clip", "embed_dim": 8, "image": tower, "text": SIZE}
    values["data"] = {
        "source": f"npz:{folder}/images.npz+jsonl:{folder}/text.jsonl",
        "mode": "documents",
        "tokenizer": tokenizer,
        "seq_len": seq_len,
    }
    return values


def scored(folder):
    """(inputs under their names, scores of texts and images) of the pair of towers of a workdir."""
    learned = runs.read_trained(folder)
    special = learned.objective.spec.special_ids
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ("one giant leap", "a model and its loss")
    rows = [[special["bos"], *tokenizer.encode(text).ids, special["eos"]] for text in texts]
    width = max(map(len, rows))
    tokens = np.array([row + [special["pad"]] * (width - len(row)) for row in rows])
    segments = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    images = np.random.default_rng(2).normal(size=(2, 8, 8, 3)).astype(np.float32)
    model, params = learned.objective.model, {"params": learned.model_params}
    seen, read, scale = model.apply(params, images, jnp.asarray(tokens), jnp.asarray(segments))
    scores = scale * (read / np.linalg.norm(read, axis=1)[:, None]) @ (seen / np.linalg.norm(seen, axis=1)[:, None]).T
    inputs = {"input_ids": tokens, "attention_mask": segments, "pixel_values": images.transpose(0, 3, 1, 2)}
    return inputs, np.asarray(scores)


def test_a_pair_of_towers(tmp_path):
    run.train(pairs(tmp_path, {"name": "bpe", "vocab_size": 280}), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    loaded = hf.load(tmp_path / "out")
    inputs, scores = scored(tmp_path / "run")
    assert (
        loaded.hf_config["text_config"]["eos_token_id"] == inputs["input_ids"][0, inputs["attention_mask"][0].sum() - 1]
    )
    np.testing.assert_allclose(loaded.forward(**inputs)["logits_per_text"], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("end", "found"), [({}, "no token"), ({"bos": 1, "eos": 2}, "id 2")])
def test_a_text_tower_whose_end_transformers_would_not_find(end, found):
    towers = models.REGISTRY.get("clip")(
        image=dataclasses.replace(ViTConfig(**SIZE), patch_size=4, image_shape=(8, 8, 3), embedding_norm=True),
        text=TextConfig(**SIZE, vocab_size=32, max_len=8),
    )
    model = hf.Model(None, {}, {"text_config": {}}, towers, None)
    with pytest.raises(UserError, match=rf"data.tokenizer: a text ends with {found}"):
        with_ids(model, DataSpec(elements={}, size=1, special_ids=end))


def built(path, **overrides):
    config, _ = load(str(ROOT / path), list(overrides.items()))
    program = runs.assemble(config, jax.devices()[:1]).program
    state = jax.eval_shape(program.init, 0)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.params["encoder"])
    return program.objective.model, zeros


@pytest.mark.parametrize(
    ("path", "architecture"), [("configs/text/causal_lm.py", "gpt_neox"), ("configs/text/mlm.py", "esm")]
)
def test_the_shipped_text_configs_have_a_counterpart(path, architecture):
    module, params = built(path)
    assert of_module(module, params, causal="causal" in path).hf_config["model_type"] == architecture


@pytest.mark.parametrize(
    ("model", "causal", "message"),
    [
        ({"name": "gpt", "talking_heads": True}, True, r"^model.talking_heads: True: without counterpart in 'gpt2'"),
        ({"name": "gpt", "position_bias": "alibi", "positions": "none"}, True, r"model.position_bias: 'alibi'"),
        (
            {"name": "bert", "norm_position": "parallel", "token_types": 2},
            False,
            r"model.norm_position: 'parallel'.*in 'bert'",
        ),
        ({"name": "bert", "norm_position": "parallel"}, False, r"model.norm_position: 'parallel'.*in '(distil)?bert'"),
        ({"name": "gpt"}, False, r"objective.name: attends to both sides: without counterpart in 'gpt2'"),
        ({"name": "vit", "patch_size": 4}, False, r"counterpart"),
    ],
)
def test_an_option_without_a_counterpart_is_named(model, causal, message):
    keys = {"vocab_size": 64, "max_len": 16} if model["name"] != "vit" else {"talking_heads": True}
    built = schema.build_named(models.REGISTRY, {**SIZE, **model, **keys}, "model")
    if model["name"] == "vit":
        built = dataclasses.replace(built, image_shape=(8, 8, 3))
        module, params = built.standalone(), {}
    else:
        module = built.standalone()
        params = jax.eval_shape(module.initial, jax.random.key(0))["params"]
    with pytest.raises(UserError, match=message) as error:
        of_module(module, params, causal)
    assert "\n" not in str(error.value)


@pytest.mark.full
def test_padding_of_the_vocabulary_is_left_out(tmp_path):
    run.train(config("causal_lm", {"name": "gpt", "vocab_multiple": 64}, tmp_path), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert safetensors.numpy.load_file(tmp_path / "out/model.safetensors")["transformer.wte.weight"].shape == (260, 16)


@pytest.mark.full
def test_an_encoder_without_the_head_of_language_modelling(tmp_path):
    lines = [json.dumps({"text": f"{word} " * 4, "label": i % 2}) + "\n" for i, word in enumerate(WORDS * 4)]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    data = {"keys": {"text": "text", "label": "label"}, "mode": "documents"}
    values = config("classification", {"name": "bert", "token_types": 2}, tmp_path)
    values["data"] |= data
    run.train(values, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertModel"]
    loaded, learned = hf.load(tmp_path / "out"), runs.read_trained(tmp_path / "run")
    assert not loaded.config.readout_transform
    assert set(loaded.forward(input_ids=np.ones((1, 4), np.int32))) >= {"last_hidden_state"}
    for path, value in hf.flat(loaded.variables["params"]).items():
        np.testing.assert_array_equal(value, hf.flat(learned.model_params)[path], err_msg=path)


def test_a_step_of_a_workdir_and_a_folder_that_is_none(tmp_path, capfd):
    values = config("causal_lm", {"name": "gpt"}, tmp_path, checkpoint={"every_steps": 1, "keep": 2}, ema=0.5)
    run.train(values, tmp_path / "run")
    early, late = (runs.read_trained(tmp_path / "run", step) for step in (1, None))
    assert (early.step, late.step) == (1, 2)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--step", "1"]) == 0
    tensors = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    np.testing.assert_array_equal(tensors["transformer.wte.weight"], early.params["encoder"]["embed"]["embedding"])
    assert (tensors["transformer.wte.weight"] != late.params["encoder"]["embed"]["embedding"]).any()
    for arguments, message in (
        ([str(tmp_path / "run"), "--step", "7"], "no checkpoint of step 7"),
        ([str(tmp_path)], "is not a workdir of `ssljax train`"),
    ):
        capfd.readouterr()
        assert cli.main(["export", arguments[0], str(tmp_path / "no"), *arguments[1:]]) == 2
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1


def parity(name):
    if not (PARITY / name).is_dir():
        pytest.skip(f"no reference models in {PARITY}")
    return PARITY / name


def test_import_writes_a_folder_anew(tmp_path, capfd):
    source = tmp_path / "source"
    shutil.copytree(parity("llama"), source)
    (source / "tokenizer_config.json").write_text('{"padding_side": "left", "chat_template": "{{ messages }}"}')
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    assert cli.main(["import", str(source), str(tmp_path / "out")]) == 0
    for name in ("tokenizer_config.json", "generation_config.json", "additional_chat_templates/tool_use.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    before, after = (safetensors.numpy.load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    values = json.loads((tmp_path / "out/ssljax.json").read_text())["model"]
    assert schema.build_named(models.REGISTRY, values, "model").with_preset() == hf.load(source).config
    capfd.readouterr()
    assert cli.main(["import", str(source), str(source)]) == 2
    assert "is the folder that is read" in capfd.readouterr().err
    assert cli.main(["import", str(source), str(source / "config.json")]) == 2
    assert capfd.readouterr().err.endswith("config.json: is no folder\n")


def as_published(config, built):
    """A configuration that was built, with the fields that are no keys: heads, and the shape of the images."""
    if isinstance(config, ViTConfig):
        return dataclasses.replace(built, **{k: getattr(config, k) for k in ("classes", "heads_on", "image_shape")})
    inner = {"image": as_published(config.image, built.image)} if hasattr(config, "image") else {}
    return dataclasses.replace(built, **inner)


@pytest.mark.parametrize("name", parity_cases.CASES)
def test_the_groups_of_an_imported_model_build_it(name):
    hf_config = json.loads((PARITY / name / "config.json").read_text())
    family = REGISTRY.get(hf_config["model_type"])
    config = family.build_config(hf_config, "config.json")
    values = json.loads(json.dumps(groups(hf.Model(None, {}, hf_config, config, family))))
    model = schema.build_named(models.REGISTRY, values["model"], "model").with_preset()
    if name == "vit_mae":  # an encoder, and the decoder of the objective
        decoder = schema.build_named(objectives.REGISTRY, values["objective"], "objective").decoder
        assert decoder.with_preset() == config.decoder
        config = config.encoder
    assert as_published(config, model) == config


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(n, n) for n in ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "mixtral")]
    + [(n, n) for n in ("bert", "roberta", "distilbert", "albert", "modernbert", "t5", "bart", "pegasus")]
    + [("deberta_v2", "deberta-v2"), ("electra_generator", "electra"), ("electra_discriminator", "electra")],
)
def test_every_reference_model_finds_its_own_architecture(name, architecture):
    model = hf.load(parity(name))
    again = of_module(model.module, model.variables["params"], model.family.causal)
    assert again.hf_config["model_type"] == architecture
    assert canonical(again.config) == canonical(model.config)
    tensors = hf.tensors_of(again, again.variables["params"])
    for key, value in hf.tensors_of(model, model.variables["params"]).items():
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)


def test_files_of_torch(tmp_path, monkeypatch):
    source = parity("bert")
    shutil.copy(source / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no file of torch")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match=r"pytorch_model.bin: reading it needs torch"):
            hf.load(tmp_path)
    torch = pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"pytorch_model.bin: not a whole file of tensors") as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v.copy()
           for k, v in tensors.items()}  # fmt: skip
    want = hf.load(source).variables["params"]
    for form in (True, False):  # the newer form is a zip file, the older one is not
        torch.save(
            {k: torch.from_numpy(v) for k, v in old.items()},
            tmp_path / "pytorch_model.bin",
            _use_new_zipfile_serialization=form,
        )
        got = hf.load(tmp_path).variables["params"]
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_sentence_pieces(tmp_path, monkeypatch):
    source = parity("t5")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(source / file, tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        model = hf.load(tmp_path)  # which needs no tokenizer as long as nobody asks for one
        with pytest.raises(UserError, match=r"spiece\.model: a SentencePiece model needs the package sentencepiece"):
            model.tokenizer.encode("text")
    sentencepiece = pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match=r"spiece.model: is not a SentencePiece model"):
        hf.load(tmp_path).tokenizer.encode("text")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(np.random.default_rng(i).choice(WORDS, 8)) for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=28, minloglevel=2
    )
    model = hf.load(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    encoding = model.tokenizer.encode("a giant leap")
    assert encoding.ids == processor.encode("a giant leap") and encoding.tokens[0].startswith("▁")
    assert model.tokenizer.decode([1, *encoding.ids, 2]) == "a giant leap"
    hf.save(model, tmp_path / "out")
    assert (tmp_path / "out/spiece.model").read_bytes() == (tmp_path / "spiece.model").read_bytes()
    # A run on its tokens, whose workdir keeps the file.
    values = config("causal_lm", {"name": "gpt"}, tmp_path)
    values["data"]["tokenizer"] = {"name": "file", "path": str(tmp_path / "spiece.model")}
    run.train(values, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "exported")
    assert hf.load(tmp_path / "exported").tokenizer.encode("a giant leap").ids == encoding.ids
