"""Runs with `init_from`: the selected parameters are loaded, and nothing else changes."""

import dataclasses
import json
import os
import shutil
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from daily import daily

from ssljax import models, parallel, run, runs
from ssljax.base.errors import UserError
from ssljax.base.signals import Stopped
from ssljax.config import InitFrom, build
from ssljax.data import DataSpec
from ssljax.interop import hf
from ssljax.interop.export import convert
from ssljax.interop.families import REGISTRY
from ssljax.layers.positions import resize_table, sincos_2d
from ssljax.runs.export import export
from ssljax.runs.init_from import initial_state, match_parameters, open_source, stretched
from ssljax.runs.recorder import Recorder
from ssljax.runs.workdir import Workdir

VIT = {"name": "vit", "preset": None, "width": 16, "depth": 2, "heads": 2, "patch_size": 4}
IMAGES = {
    "model": VIT,
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits", "max_examples": 100},
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
    "mesh": {"data": 8},
    "steps": 4,
    "batch_size": 16,
    "log": {"every_steps": 2, "progress": False, "trackers": [], "pictures": False},
    "checkpoint": {"every_steps": 2},
}
CLASSES = {**IMAGES, "objective": {"name": "classification"}}
WORDS = ("one", "small", "step", "for", "a", "model", "and", "a", "giant", "leap", "for", "its", "loss")


@pytest.fixture(scope="module")
def simclr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simclr")
    run.train(IMAGES, folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    rng = np.random.default_rng(0)
    path.write_text("".join(json.dumps({"text": " ".join(rng.choice(WORDS, 12))}) + "\n" for _ in range(60)))
    return path


def texts(corpus, model="gpt", objective="causal_lm", length=16, **keys):
    data = {"source": f"jsonl:{corpus}", "mode": "windows", "tokenizer": {"name": "bytes"}, "seq_len": length}
    size = {"preset": None, "width": 16, "depth": 2, "heads": 2}
    return {**IMAGES, "model": {"name": model, **size, **keys}, "objective": {"name": objective}, "data": data}


@pytest.fixture(scope="module")
def gpt(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    run.train(texts(corpus), folder)
    return folder


def started(config, source, folder, **keys):
    """States at step 0 with and without `init_from`, as {path: array}, and the content of init_from.json."""
    assembly = runs.assemble(build({**config, "init_from": {"path": str(source), **keys}}))
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        state, fresh = initial_state(assembly, Workdir(folder)), program.jitted_init()(assembly.config.seed)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(program.shardings)):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return state, fresh, json.loads((folder / "init_from.json").read_text())


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_encoder_for_a_classifier(simclr, tmp_path):
    state, fresh, said = started(CLASSES, simclr, tmp_path)
    learned = runs.read_trained(simclr)
    for path, value in hf.flat(state.params).items():
        expected = learned.params if path.startswith("encoder/") else fresh.params
        same(value, hf.flat(expected)[path])
    assert sorted(said["loaded"]) == sorted(p for p in hf.flat(state.params) if p.startswith("encoder/"))
    assert said["kept"] == {"head/linear/kernel": "not in the source", "head/linear/bias": "not in the source"}
    assert said["unused"] and all(path.startswith("projector/") for path in said["unused"])
    assert "step 4" in said["origin"]
    for name in ("step", "seed", "meters", "guard", "extra", "opt_state"):
        jax.tree.map(same, getattr(state, name), getattr(fresh, name))


def test_the_same_objective_loads_all_parameters(simclr, tmp_path):
    state, _, said = started(IMAGES, simclr / "checkpoints" / "2", tmp_path)
    jax.tree.map(same, state.params, runs.read_trained(simclr, 2).params)
    assert not said["kept"] and not said["unused"] and "step 2" in said["origin"]


def test_patterns(simclr, tmp_path):
    state, fresh, said = started(
        CLASSES, simclr, tmp_path, include=["^encoder/stack/", "positions"], exclude=["mlp/", "norm"]
    )
    learned = hf.flat(runs.read_trained(simclr).params)
    for path, value in hf.flat(state.params).items():
        wanted = path == "encoder/positions" or path.startswith("encoder/stack/layers/attention/")
        assert (path in said["loaded"]) == wanted
        same(value, (learned if wanted else hf.flat(fresh.params))[path])
    assert said["kept"]["encoder/patch/kernel"] == "excluded"


def test_positions_of_another_image_size(simclr, tmp_path):
    config = {**CLASSES, "data": {**CLASSES["data"], "image_size": 16}}
    state, _, said = started(config, simclr, tmp_path)
    learned = runs.read_trained(simclr).params["encoder"]
    assert said["resized"] == {"encoder/positions": "[5, 16] -> [17, 16]"}
    got = state.params["encoder"]["positions"]
    same(got[0], learned["positions"][0])  # the position of the class token
    same(got[1:], resize_table(learned["positions"][1:], (2, 2), (4, 4)))
    same(state.params["encoder"]["patch"]["kernel"], learned["patch"]["kernel"])


@pytest.mark.parametrize("length", [8, 31])
def test_positions_of_another_length(gpt, corpus, tmp_path, length):
    state, _, said = started(texts(corpus, length=length), gpt, tmp_path)
    table = runs.read_trained(gpt).params["encoder"]["position_embed"]["embedding"]
    got = np.asarray(state.params["encoder"]["position_embed"]["embedding"])
    assert said["resized"] == {"encoder/position_embed/embedding": f"[16, 16] -> [{length}, 16]"}
    if length == 8:
        same(got, table[:8])
    else:  # twice as many positions between the same two ends
        np.testing.assert_allclose(got[::2], table, atol=1e-6)
        np.testing.assert_allclose(got[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)
    same(stretched(table, len(table)), table)


@pytest.mark.full
def test_teachers_and_averages_start_from_the_loaded_parameters(simclr, tmp_path):
    head = {"hidden": 16, "bottleneck": 8, "prototypes": 12}
    crops = {"name": "multi_crop", "local_crops": 1, "local_size": 4}
    config = {**IMAGES, "objective": {"name": "dino", "head": head, "augment": crops}, "ema": 0.9}
    state, fresh, _ = started(config, simclr, tmp_path)
    learned = runs.read_trained(simclr).params["encoder"]
    for tree in (state.params, state.ema, state.extra["teacher"]):
        jax.tree.map(same, tree["encoder"], learned)
        jax.tree.map(same, tree["head"], fresh.params["head"])
    same(state.extra["center"], fresh.extra["center"])
    run.train(
        {**config, "init_from": {"path": str(simclr)}, "steps": 2}, tmp_path / "run"
    )  # the buffers are not shared
    # In the other direction, the teacher is loaded.
    state, _, _ = started(IMAGES, tmp_path / "run", tmp_path)
    jax.tree.map(same, state.params["encoder"], runs.read_trained(tmp_path / "run").extra["teacher"]["encoder"])


@pytest.mark.full
def test_averaged_weights_are_loaded_if_kept(corpus, tmp_path):
    run.train({**texts(corpus), "ema": 0.5}, tmp_path / "run")
    state, _, _ = started(texts(corpus), tmp_path / "run", tmp_path)
    jax.tree.map(same, state.params, runs.read_trained(tmp_path / "run").params)


def test_a_hugging_face_folder(gpt, corpus, tmp_path):
    export(gpt, tmp_path / "hf")
    state, _, said = started(texts(corpus), tmp_path / "hf", tmp_path)
    jax.tree.map(same, state.params, runs.read_trained(gpt).params)
    assert not said["kept"] and not said["unused"]
    # With another objective and another kind of model, shared paths are loaded.
    config = texts(corpus, "bert", "mlm", norm_position="pre", activation="gelu_tanh", embedding_norm=False)
    state, fresh, said = started(config, tmp_path / "hf", tmp_path)
    learned = hf.flat(runs.read_trained(gpt).params)
    fresh_params = hf.flat(fresh.params)
    for path, value in hf.flat(state.params).items():
        same(value, (fresh_params if "head_" in path else learned)[path])
    assert set(said["kept"]) == {path for path in fresh_params if "head_" in path}


def test_a_hugging_face_folder_is_read_onto_the_mesh_of_the_run(gpt, corpus, tmp_path):
    export(gpt, tmp_path / "hf")
    config = build({**texts(corpus), "mesh": {"data": 2, "fsdp": 4}, "init_from": {"path": str(tmp_path / "hf")}})
    program = runs.assemble(config).program
    source = open_source(config.init_from, program.mesh)
    values, _ = match_parameters(config.init_from, source, program.objective, program.shapes.params)
    kernel = "stack/layers/mlp/in/kernel"
    assert values[f"encoder/{kernel}"] is source.model[kernel]  # no copy, and no array of the host
    assert source.model[kernel].sharding.is_equivalent_to(
        program.shardings.params["encoder"]["stack"]["layers"]["mlp"]["in"]["kernel"], 3
    )


PATCHES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES |= {"image_size": 8, "num_channels": 1, "patch_size": 4, "layer_norm_eps": 1e-6}


def published(folder, kind, **keys):
    """{path: array} of a random model that is saved in the Hugging Face format."""
    family = REGISTRY.get(kind)
    theirs = {"model_type": kind, "architectures": [family.heads[-1].name], **PATCHES, **keys}
    ours = family.build_config(theirs, "config.json")
    module = ours.standalone()
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(3))["params"])
    hf.save(hf.Model(module, {"params": params}, theirs, ours, family), folder)
    return hf.flat(params)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_a_pooler_of_a_folder_is_loaded(corpus, tmp_path, name):
    """`import` writes a model with a pooler in ssljax.json; a run with it starts from the pooler of the folder."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = {"model_type": "bert", "architectures": [name], "vocab_size": 260, "max_position_embeddings": 16, **sizes}
    family = REGISTRY.get("bert")
    ours = dataclasses.replace(family.build_config(theirs, "config.json"), extras=("pooler",))
    module = ours.standalone()
    learned = nn.unbox(jax.jit(module.initial)(jax.random.key(3))["params"])
    hf.save(hf.Model(module, {"params": learned}, theirs, ours, family), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    group = json.loads((tmp_path / "ours/ssljax.json").read_text())["model"]
    assert group["extras"] == ["pooler"]
    source = open_source(InitFrom(path=str(tmp_path / "ours")))
    for path in ("pooler/kernel", "pooler/bias"):
        np.testing.assert_array_equal(source.model[path], hf.flat(learned)[path])
    assert "bert.pooler.dense.weight" not in source.rest


DECODER = {"preset": None, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 12, "positions": "learned"}
MAE = {**IMAGES, "objective": {"name": "mae", "mask_ratio": 0.5, "decoder": DECODER}}


def mae(folder):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return published(folder, "vit_mae", **{f"decoder_{key}": value for key, value in small.items()})


def test_an_autoencoder(tmp_path):
    learned = mae(tmp_path / "hf")
    state, _, said = started(MAE, tmp_path / "hf", tmp_path)
    assert not said["kept"] and not said["unused"]
    for path, value in hf.flat(state.params).items():
        same(value, learned[path])
    state, _, said = started(CLASSES, tmp_path / "hf", tmp_path)
    assert set(said["kept"]) == {"head/linear/kernel", "head/linear/bias"}
    assert set(said["unused"]) == {path for path in learned if path.startswith("decoder/")}
    for path, value in hf.flat(state.params["encoder"]).items():
        same(value, learned[f"encoder/{path}"])


def test_an_autoencoder_for_images_of_another_size(tmp_path):
    learned = mae(tmp_path / "hf")
    state, _, said = started({**MAE, "data": {**MAE["data"], "image_size": 16}}, tmp_path / "hf", tmp_path)
    assert said["resized"].keys() == {"encoder/positions", "decoder/positions"} and not said["kept"]
    got, table = state.params["decoder"]["positions"], learned["decoder/positions"]
    same(got[0], table[0])
    same(got[1:], resize_table(table[1:], (2, 2), (4, 4)))


def test_fixed_positions_that_a_file_has_as_a_table(tmp_path):
    mae(tmp_path / "hf")
    file = tmp_path / "hf/model.safetensors"
    tables = {"vit.embeddings.position_embeddings": 16, "decoder.decoder_pos_embed": 8}
    fixed = {name: np.pad(sincos_2d((2, 2), width), ((1, 0), (0, 0)))[None] for name, width in tables.items()}
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | fixed, file)
    decoder = {"name": "mae", "mask_ratio": 0.5, "decoder": {**DECODER, "positions": "sincos"}}
    config = {**MAE, "model": {**VIT, "positions": "sincos"}, "objective": decoder}
    _, _, said = started(config, tmp_path / "hf", tmp_path)
    assert not said["kept"] and not said["unused"]
    other = {name: table + 1 for name, table in fixed.items()}
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | other, file)
    assert started(config, tmp_path / "hf", tmp_path)[2]["unused"] == ["positions", "decoder/positions"]


@pytest.mark.parametrize("shared", daily([True, False], 4))
def test_beit(tmp_path, shared):
    name = "use_shared_relative_position_bias" if shared else "use_relative_position_bias"
    learned = published(tmp_path / "hf", "beit", use_mask_token=True, **{name: True})
    model = {**VIT, "name": "beit", "layer_bias": not shared, "norm_after_pool": True}
    state, _, said = started({**CLASSES, "model": model}, tmp_path / "hf", tmp_path)
    assert said["kept"].keys() == {"head/linear/kernel", "head/linear/bias"} and not said["unused"]
    for path, value in hf.flat(state.params["encoder"]).items():
        same(value, learned[path])
    # At another image size, biases equal those that the published model has at that size.
    larger = {**CLASSES, "model": model, "data": {**CLASSES["data"], "image_size": 16}}
    state, _, said = started(larger, tmp_path / "hf", tmp_path)
    place = "stack/relative_bias" if shared else "stack/layers/attention/relative_bias"
    assert said["resized"].keys() == {f"encoder/{place}"}
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    small = hf.load(tmp_path / "hf")
    large = models.create(model, DataSpec({"image": {"shape": (16, 16, 1), "dtype": "uint8"}}, 1))
    want = small.module.apply(small.variables, images).pooled
    got = large.apply({"params": jax.device_get(state.params["encoder"])}, images).pooled
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_tensor_without_a_parameter_is_reported(gpt, corpus, tmp_path, caplog):
    export(gpt, tmp_path / "hf")
    file = tmp_path / "hf/model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    lost = "transformer.h.1.ln_1.weight"
    tensors = {k: v for k, v in tensors.items() if k != lost} | {"score.weight": np.zeros((2, 16), np.float32)}
    safetensors.numpy.save_file(tensors, file)
    with caplog.at_level("INFO", logger="ssljax"):
        state, fresh, said = started(texts(corpus), tmp_path / "hf", tmp_path)
    path = "encoder/stack/layers/attention_norm/scale"
    assert said["unused"] == ["score.weight"] and said["kept"] == {path: "not in the source"}
    same(hf.flat(state.params)[path], hf.flat(fresh.params)[path])
    assert "not used: score.weight" in caplog.text and f"initial values kept: {path}" in caplog.text


CASES = {
    "no such path": ({"path": "/nowhere"}, r"init_from\.path: '/nowhere' does not exist, must be a workdir"),
    "an empty folder": ({"path": "{tmp}"}, r"init_from\.path: '.*' holds no model"),
    "an unset variable": ({"path": "$NOT_SET_HERE/x"}, r"init_from\.path: .*NOT_SET_HERE"),
    "no such checkpoint": ({"path": "{source}/checkpoints/3"}, r"no checkpoint of step 3"),
    "an unknown pattern": ({"path": "{source}", "exclude": ["decoder"]}, r"init_from\.exclude: 'decoder' matches no"),
    "nothing left": ({"path": "{source}", "exclude": [""]}, r"init_from: no parameter of .* fits"),
    "no expression": ({"path": "{source}", "include": ["("]}, r"init_from\.include: '\(' is not a regular expression"),
    "no path": ({"include": ["encoder"]}, r"init_from\.path: missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes(case, simclr, tmp_path):
    values, message = CASES[case]
    values = {**values, **({"path": values["path"].format(tmp=tmp_path, source=simclr)} if "path" in values else {})}
    with pytest.raises(UserError, match=message) as error:
        run.train({**CLASSES, "init_from": values}, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_another_shape_is_an_error_unless_excluded(simclr, tmp_path):
    config = {**CLASSES, "model": {**VIT, "mlp_dim": 24}}
    with pytest.raises(UserError, match=r"encoder/stack/layers/mlp/in/kernel \[2, 16, 64\], not \[2, 16, 24\]"):
        started(config, simclr, tmp_path)
    _, _, said = started(config, simclr, tmp_path, exclude=["mlp/"])
    assert "encoder/patch/kernel" in said["loaded"] and said["kept"]["encoder/stack/layers/mlp/in/kernel"] == "excluded"
    # Another kind of model has nothing in common.
    with pytest.raises(UserError, match="no parameter of"):
        started({**CLASSES, "model": {**VIT, "name": "vit"}}, simclr, tmp_path, include=["head"])


@pytest.mark.full
def test_a_classifier_of_other_classes_is_not_loaded(tmp_path):
    run.train(CLASSES, tmp_path / "ten")
    config = {**CLASSES, "data": {**CLASSES["data"], "num_classes": 12}}
    state, fresh, said = started(config, tmp_path / "ten", tmp_path)
    assert said["kept"] == {"head/linear/bias": "[10] in the source", "head/linear/kernel": "[16, 10] in the source"}
    jax.tree.map(same, state.params["head"], fresh.params["head"])


def parameters(folder):
    learned = runs.read_trained(folder)
    return {**hf.flat(learned.params), "step": learned.step}


@pytest.mark.full
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_run(simclr, tmp_path, monkeypatch):
    """Before its first checkpoint a run reads the source again; after it, the source is not read."""
    source = tmp_path / "source"
    shutil.copytree(simclr, source)
    config = {**CLASSES, "init_from": {"path": str(source)}, "steps": 6}
    run.train(config, tmp_path / "whole")

    def stop_at(step):
        original = Recorder.save

        def save_then_term(self, done, state):
            original(self, done, state)
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Recorder, "save", save_then_term)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed before anything was saved
        patch.setattr(Recorder, "save", die)
        with pytest.raises(KeyboardInterrupt):
            run.train(config, tmp_path / "resumed")
    stop_at(2)
    with pytest.raises(Stopped):
        run.train(config, tmp_path / "resumed")
    monkeypatch.undo()
    shutil.rmtree(source)
    run.train(config, tmp_path / "resumed")
    whole, resumed = parameters(tmp_path / "whole"), parameters(tmp_path / "resumed")
    assert whole.keys() == resumed.keys() and whole["step"] == 6
    for path in whole:
        same(whole[path], resumed[path])


def test_init_from_is_part_of_the_identity(simclr, tmp_path):
    plain, other = build(CLASSES), build({**CLASSES, "init_from": {"path": str(simclr)}})
    assert plain.hash() != other.hash()
    assert other.hash() != build({**CLASSES, "init_from": {"path": str(simclr), "exclude": ["norm"]}}).hash()
    run.train({**CLASSES, "steps": 2}, tmp_path)
    with pytest.raises(UserError, match=r"init_from"):
        run.train({**CLASSES, "steps": 2, "init_from": {"path": str(simclr)}}, tmp_path)


@pytest.mark.full
def test_a_run_of_zero_steps_evaluates_the_loaded_model(simclr, tmp_path):
    evals = {"knn": {"max_examples": 64, "k": 5}}
    shutil.copytree(simclr, tmp_path / "copy")
    config = json.loads((simclr / "config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps({**config, "evals": evals}))
    want = [line["metrics"] for line in runs.evaluate(tmp_path / "copy") if line["of"] == "trained"]
    done = run.train({**IMAGES, "steps": 0, "evals": evals, "init_from": {"path": str(simclr)}}, tmp_path / "run")
    assert [line["metrics"] for line in done.evaluations if line["of"] == "trained"] == want
    assert (tmp_path / "run/report.html").exists()


def test_defaults():
    assert InitFrom("x").selects("anything") and not InitFrom("x", exclude=("any",)).selects("anything")


@pytest.mark.parametrize("heads", ["mean", "first"])
def test_heads_of_keys_and_values_are_pooled(gpt, corpus, tmp_path, heads):
    state, _, said = started(texts(corpus, kv_heads=1), gpt, tmp_path, heads=heads)
    learned = hf.flat(runs.read_trained(gpt).params)
    pooled = {f"encoder/stack/layers/attention/{name}/{part}" for name in "kv" for part in ("kernel", "bias")}
    assert set(said["resized"]) == pooled and not said["kept"]
    for path, value in hf.flat(state.params).items():
        before = learned[path]
        if path in pooled:
            by_head = before.reshape(*before.shape[:-1], 2, 8)
            before = by_head.mean(-2) if heads == "mean" else by_head[..., 0, :]
        np.testing.assert_allclose(value, before, rtol=1e-6)
