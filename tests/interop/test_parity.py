"""Models in the Hugging Face format against outputs, losses and gradients of `transformers`, both styles of config.

The reference models lie in the folder `hf_parity` next to the one that SSLJAX_DATA names.
"""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from daily import daily
from fixtures import CASES, FOLDER, case, meaningful, norms, plain, variants

from ssljax import cli
from ssljax.base.errors import UserError
from ssljax.interop import hf

pytestmark = pytest.mark.skipif(not CASES, reason=f"no reference models in {FOLDER}")
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def legacy(name, folder):
    """A model with the config of an older version loads as the same model."""
    shutil.copy(FOLDER / name / "config_legacy.json", folder / "config.json")
    shutil.copy(FOLDER / name / "model.safetensors", folder)
    return folder


@pytest.mark.parametrize("name", daily(CASES, 6))
def test_outputs_and_gradients(name):
    inputs, expected, _ = case(name)
    model = hf.load(FOLDER / name)
    got = model.forward(**inputs)
    for other, more_expected in variants(expected, inputs).values():
        more = model.forward(**other)
        for key, value in more_expected.items():
            np.testing.assert_allclose(more[key], value, **TOLERANCE, err_msg=key)
    expected = plain(expected)
    assert set(expected) <= set(got)
    for key, value in expected.items():
        assert got[key].shape == value.shape, key
        np.testing.assert_allclose(meaningful(got[key], inputs), meaningful(value, inputs), **TOLERANCE, err_msg=key)
    expected_norms, got_norms = norms(name, model)
    compared = expected_norms.keys() & got_norms.keys()
    assert len(compared) >= 0.8 * len(expected_norms) or name == "mixtral"  # in memory its experts are fused
    for key in compared:
        np.testing.assert_allclose(got_norms[key], expected_norms[key], **TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", daily(CASES, 6))
def test_old_configs_and_back(name, tmp_path):
    model, same = hf.load(legacy(name, tmp_path)), hf.load(FOLDER / name)
    assert model.config == same.config
    hf.save(model, tmp_path / "out")
    before, after = (safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "out"))
    before = {functools.reduce(lambda n, pair: re.sub(*pair, n), model.family.renames, k): v for k, v in before.items()}
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    # Only tables that are computed are missing.
    assert all("embed_positions" in key for key in before.keys() - after.keys())


# One of each file of rules, and of each way of the block; the others under `full`.
FIRST = ("llama", "albert", "deberta_v2", "t5", "beit", "siglip", "gpt2", "gpt_neox", "opt", "vit")
FIRST += ("dinov2_with_registers", "vit_mae")
TIERED = [pytest.param(name, marks=() if name in FIRST else pytest.mark.full) for name in CASES]


@pytest.mark.parametrize("name", TIERED)
def test_unrolled(name):
    inputs, expected, _ = case(name)
    got = hf.load(FOLDER / name, scan=False).forward(**inputs)
    for key, value in plain(expected).items():
        np.testing.assert_allclose(meaningful(got[key], inputs), meaningful(value, inputs), **TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", TIERED)
def test_on_a_mesh(name):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    inputs, expected, _ = case(name)
    model = hf.load(FOLDER / name, mesh=mesh)
    if name == "llama":
        kernel = model.variables["params"]["stack"]["layers"]["mlp"]["in"]["kernel"]
        assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    split = [leaf for leaf in jax.tree.leaves(model.variables["params"]) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 5
    got = model.forward(**inputs)
    for key, value in plain(expected).items():
        np.testing.assert_allclose(meaningful(got[key], inputs), meaningful(value, inputs), **TOLERANCE, err_msg=key)


def test_flags_for_behaviour_that_forward_always_has():
    inputs, _, _ = case("vit")
    model = hf.load(FOLDER / "vit")
    flags = {"interpolate_pos_encoding": True, "output_hidden_states": True, "return_dict": True}
    jax.tree.map(np.testing.assert_array_equal, model.forward(**inputs), model.forward(**inputs, **flags))


def spoil(folder, name="llama"):
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(FOLDER / name / file, folder / file)
    return folder


def changed(folder, **keys):
    """The folder's config.json with other keys; those that are None are left out."""
    config = {**json.loads((folder / "config.json").read_text()), **keys}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def without(folder, name, pattern):
    """A reference model without the tensors that match."""
    tensors = safetensors.numpy.load_file(spoil(folder, name) / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not re.match(pattern, k)}
    assert len(kept) < len(tensors)
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    return folder


def test_bad_files_are_refused_in_one_line(tmp_path):
    def refused(message, **changes):
        config = json.loads((FOLDER / "llama" / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=message) as error:
            hf.load(tmp_path)
        assert "\n" not in str(error.value)

    spoil(tmp_path)
    refused(r"model_type 'lama' is not supported; did you mean 'llama'", model_type="lama")
    refused(r"hidden_size: got -48, must be at least 1", hidden_size=-48)
    refused(r"config.json\S*norm_eps: got -1.0, must be > 0", rms_norm_eps=-1)
    refused(r"config.json: rope_parameters: got 'x', must be a group of keys", rope_parameters="x")
    refused(r"hidden_act: 'mish' is not supported", hidden_act="mish")
    refused(r"rope_type 'su' is not supported", rope_parameters={"rope_type": "su", "factor": 2.0})
    refused(r"shape: model.layers.0.mlp.gate_proj.weight \[88, 48\] does not fit", intermediate_size=96)
    refused(r"1 tensors do not match|missing: model.layers.3", num_hidden_layers=4)
    refused(r"extra: model.layers.2", num_hidden_layers=2)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(r"model.safetensors: not a whole safetensors file")
    (tmp_path / "model.safetensors").unlink()
    refused(r"has no \*.safetensors file")
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(r"names model-00002-of-00002.safetensors, which the folder does not have")


def embedding(folder):
    return float(np.asarray(hf.load(folder).variables["params"]["embed"]["embedding"])[0, 0])


def shards(folder, value, *names):
    """The reference llama in files of these names, its first number changed; without an index."""
    tensors = safetensors.numpy.load_file(FOLDER / "llama/model.safetensors")
    tensors["model.embed_tokens.weight"][0, 0] = value
    for i, name in enumerate(names):
        part = {k: v for j, (k, v) in enumerate(sorted(tensors.items())) if j % len(names) == i}
        safetensors.numpy.save_file(part, folder / name)
    return tensors.keys()


def test_the_order_in_which_files_of_tensors_are_tried(tmp_path):
    shutil.copy(FOLDER / "llama/config.json", tmp_path)
    names = shards(tmp_path, 3.0, "a.safetensors", "b.safetensors")
    assert embedding(tmp_path) == 3
    shards(tmp_path, 4.0, "c.safetensors")
    with pytest.raises(UserError, match=r"c\.safetensors: has \S+ too, as [ab]\.safetensors does"):
        hf.load(tmp_path)
    index = {"weight_map": dict.fromkeys(names - {"lm_head.weight"}, "c.safetensors")}  # what it leaves out is read too
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert embedding(tmp_path) == 4
    shards(tmp_path, 5.0, "model.safetensors")
    assert embedding(tmp_path) == 5


def test_saving_removes_earlier_tensors(tmp_path):
    shutil.copy(FOLDER / "llama/config.json", tmp_path)
    index = {"weight_map": dict.fromkeys(shards(tmp_path, 3.0, "model-00001.safetensors"), "model-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = hf.load(tmp_path)
    hf.save(dataclasses.replace(model, variables=jax.tree.map(jnp.zeros_like, model.variables)), tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"] and embedding(tmp_path) == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not an index of tensors"),
        ("[]", "not an index of tensors"),
        ("{}", "not an index of tensors"),
        ('{"weight_map": {"lm_head.weight": 3}}', "not an index of tensors"),
        ('{"weight_map": {"foo": "a.safetensors"}}', "names foo, which a.safetensors does not have"),
        ('{"weight_map": {"foo": "z.safetensors"}}', "names z.safetensors, which the folder does not have"),
    ],
)
def test_damaged_indices(tmp_path, index, message):
    shutil.copy(FOLDER / "llama/config.json", tmp_path)
    shards(tmp_path, 3.0, "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=rf"model\.safetensors\.index\.json: {message}") as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)


def test_quantised_weights_are_refused(tmp_path):
    changed(spoil(tmp_path), quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match=r"config.json: quantization_config: quantised weights are not supported"):
        hf.load(tmp_path)
    changed(tmp_path, quantization_config=None)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    whole = {k: np.zeros(v.shape, np.int8) if k == "model.norm.weight" else v for k, v in tensors.items()}
    safetensors.numpy.save_file(whole, tmp_path / "model.safetensors")
    for strict in (True, False):
        with pytest.raises(UserError, match=r"model.norm.weight: is int8, and quantised weights are not supported"):
            hf.load(tmp_path, strict)
    torch = pytest.importorskip("torch")
    eighth = {k: torch.from_numpy(v).to(torch.float8_e4m3fn) for k, v in tensors.items()}
    pytest.importorskip("safetensors.torch").save_file(eighth, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is F8_E4M3, and quantised weights are not supported"):
        hf.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "{", b"\xff"])
def test_a_config_that_is_not_an_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config.json: not (a )?JSON") as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_tokenizer(tmp_path):
    (spoil(tmp_path) / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer") as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_block_keeps_its_initial_values(tmp_path):
    tensors = safetensors.numpy.load_file(spoil(tmp_path) / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"missing: {name}"):
        hf.load(tmp_path)
    kernel = hf.load(tmp_path, strict=False).variables["params"]["stack"]["layers"]["mlp"]["in"]["kernel"]
    np.testing.assert_array_equal(kernel[2], tensors["model.layers.2.mlp.up_proj.weight"].T)
    assert 0.01 < np.std(kernel[1]) < 0.03  # normal(0.02)


def test_ids_beyond_the_vocabulary_and_positions_beyond_the_table():
    model = hf.load(FOLDER / "gpt2")
    for wrong in (211, -1):
        with pytest.raises(UserError, match=rf"input_ids: got {wrong}, must be in 0\.\.210"):
            model.forward(input_ids=np.array([[1, wrong]]))
    t5, clip = (hf.load(FOLDER / name) for name in ("t5", "clip"))
    with pytest.raises(UserError, match="decoder_input_ids: got 9999"):
        t5.forward(input_ids=np.array([[1, 2]]), decoder_input_ids=np.array([[0, 9999]]))
    with pytest.raises(UserError, match="input_ids: got 9999"):
        clip.forward(input_ids=np.array([[1, 9999]]), pixel_values=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"model.max_len: 40 positions, but a sequence has 41 tokens"):
        model.forward(input_ids=np.zeros((1, 41), np.int32))


def test_the_newer_names_of_deberta(tmp_path):
    """Published files of version 3 have other names for the read-out, with or without a key, and a second head."""
    tensors = safetensors.numpy.load_file(spoil(tmp_path, "deberta_v3") / "model.safetensors")
    want = hf.load(tmp_path).variables["params"]
    names = (("cls.predictions.transform", "lm_predictions.lm_head"), ("cls.predictions", "lm_predictions.lm_head"))
    renamed = {functools.reduce(lambda k, pair: k.replace(*pair), names, k): v for k, v in tensors.items()}
    extra = {"mask_predictions.dense.weight": np.zeros((48, 48), np.float32)}
    safetensors.numpy.save_file(renamed | extra, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for legacy in ({}, {"legacy": False}, {"legacy": True}):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "legacy"} | legacy))
        model = hf.load(tmp_path)
        jax.tree.map(np.testing.assert_array_equal, model.variables["params"], want)
        hf.save(model, tmp_path / "out")
        assert safetensors.numpy.load_file(tmp_path / "out/model.safetensors").keys() == renamed.keys()
        hf.save(dataclasses.replace(model, hf_config={}), tmp_path / "out")
        assert json.loads((tmp_path / "out/config.json").read_text())["legacy"] is False  # else its head is not read


@pytest.mark.parametrize(
    ("pattern", "config"),
    [
        ("cls.seq_relationship", {"extras": ("pooler",)}),
        ("bert.pooler|cls.seq_relationship", {"extras": ()}),
        ("cls.", {"extras": ("pooler",), "readout_transform": False, "readout_bias": False}),
    ],
)
def test_a_model_has_the_heads_of_its_file(tmp_path, pattern, config):
    inputs, expected, _ = case("bert")
    tensors = safetensors.numpy.load_file(spoil(tmp_path, "bert") / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not re.match(pattern, k)}
    bare = not any(k.startswith("cls.") for k in kept)
    kept = {k.removeprefix("bert.") if bare else k: v for k, v in kept.items()}
    safetensors.numpy.save_file(kept, tmp_path / "model.safetensors")
    changed(tmp_path, architectures=["BertForMaskedLM"])  # as the published files say, whatever heads they have
    model = hf.load(tmp_path)
    assert {key: getattr(model.config, key) for key in config} == config
    got = model.forward(**{key: value for key, value in inputs.items() if "label" not in key})
    for key in ("base.last_hidden_state", *(() if bare else ("prediction_logits",))):
        np.testing.assert_allclose(meaningful(got[key], inputs), meaningful(expected[key], inputs), **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "head", "missing"),
    [
        ("llama", "lm_head", "lm_head.weight"),
        ("gpt_neox", "embed_out", "embed_out.weight"),
        ("imagegpt", "lm_head", "lm_head.weight"),
        ("bert", "bert.pooler|cls.seq_relationship", "bert.pooler.dense.weight"),
        ("bert", "cls.seq_relationship", "cls.seq_relationship.weight"),
        ("bert", "cls.predictions", "cls.predictions.transform.dense.weight"),
        ("electra_discriminator", "discriminator_predictions", "discriminator_predictions.dense.weight"),
        ("electra_generator", "generator_", "generator_predictions.dense.weight"),
    ],
)
def test_the_class_that_a_file_names_has_its_heads(tmp_path, name, head, missing):
    with pytest.raises(UserError, match=rf"missing: {missing}") as error:
        hf.load(without(tmp_path, name, head))
    assert "\n" not in str(error.value)
    changed(tmp_path, architectures=None)  # then the tensors decide which heads there are
    assert not hf.load(tmp_path).missing


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_bare_file_may_name_a_class_with_a_read_out(tmp_path, name):
    tensors = safetensors.numpy.load_file(spoil(tmp_path, name) / "model.safetensors")
    inner = {k.removeprefix("transformer.").removeprefix("model."): v for k, v in tensors.items() if "lm_head" not in k}
    safetensors.numpy.save_file(inner, tmp_path / "model.safetensors")
    assert hf.load(tmp_path).config.tied


def finetuned(folder):
    """The reference BERT with a classifier, as fine-tuned models have it."""
    tensors = safetensors.numpy.load_file(spoil(folder, "bert") / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if not k.startswith("cls.")}
    heads = {"classifier.weight": np.ones((3, 48), np.float32), "classifier.bias": np.ones(3, np.float32)}
    safetensors.numpy.save_file(tensors | heads, folder / "model.safetensors")
    changed(folder, architectures=["BertForSequenceClassification"])
    return tensors


def test_a_classifier_is_left_out_by_an_option(tmp_path):
    tensors = finetuned(tmp_path)
    hint = r"extra: classifier\.bias; extra: classifier\.weight \(--leave-out '\^\(classifier\)\\b'"
    with pytest.raises(UserError, match=hint) as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)
    model = hf.load(tmp_path, leave_out=r"^(classifier)\b")
    assert model.hf_config["architectures"] == ["BertModel"] and model.config.extras == ("pooler",)
    assert hf.tensors_of(model, model.variables["params"]).keys() == tensors.keys()
    assert cli.main(["import", str(tmp_path), str(tmp_path / "out"), "--leave-out", "^classifier"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertModel"]
    for pattern, message in (("^none", "matches no tensor of"), ("(", "is no regular expression")):
        with pytest.raises(UserError, match=rf"leave_out: {re.escape(repr(pattern))} {message}"):
            hf.load(tmp_path, leave_out=pattern)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_named(tmp_path, prefix):
    tensors = safetensors.numpy.load_file(spoil(tmp_path, "gpt2") / "model.safetensors")
    safetensors.numpy.save_file({prefix + k: v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    for strict in (True, False):
        with pytest.raises(
            UserError, match=rf"has the prefix '{prefix}' of a torch wrapper .*must be 'transformer\."
        ) as e:
            hf.load(tmp_path, strict)
        assert "\n" not in str(e.value)


def test_a_buffer_of_zeros_may_be_left_out(tmp_path):
    assert not hf.load(without(tmp_path, "bart", "final_logits_bias")).config.readout_bias
