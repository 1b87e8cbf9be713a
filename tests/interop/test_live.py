"""Randomly drawn models of `transformers` and their copies in ssljax, in both directions, output by output.

Needs the extra `parity` (torch, transformers). A few draws a family by default, 20 under `-m full`.
"""

import dataclasses
import json

import hypothesis
import jax
import numpy as np
import pytest
import test_export
from daily import daily
from hypothesis import strategies as st
from random_configs import CASES

import ssljax.run
from ssljax.base.errors import UserError
from ssljax.evals.generation import Sampling, generate
from ssljax.interop import hf
from ssljax.interop.canonical import canonical
from ssljax.interop.export import of_module
from ssljax.interop.families import REGISTRY, pairs
from ssljax.runs.export import export

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
KINDS = list(REGISTRY)
# The fused experts of `transformers` want widths that are multiples of 16 bytes.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def drawn(count):
    """Settings for `count` examples that are not shrunk: each example compiles a model."""
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    checks = list(hypothesis.HealthCheck)
    return hypothesis.settings(max_examples=count, phases=phases, suppress_health_check=checks, deadline=None)


def case(kind):
    if kind not in CASES:
        pytest.skip(f"tests/interop/random_configs.py draws no settings of {kind}")
    return CASES[kind]


# ---- configurations, without `transformers`

THETAS = ("global_rope_theta", "local_rope_theta")


def legacy(kind, settings):
    """The settings of a family as older versions wrote them."""
    old = {k: v for k, v in settings.items() if k != "rope_parameters"}
    rope = settings.get("rope_parameters")
    if rope is None:
        return old
    if "full_attention" in rope:
        full, local = rope["full_attention"], rope["sliding_attention"]
        if kind == "gemma3_text" and local["rope_type"] != "default":  # they scaled full layers alone
            return settings
        names = ("rope_theta", "rope_local_base_freq") if kind == "gemma3_text" else THETAS
        old |= dict(zip(names, (full["rope_theta"], local["rope_theta"])))
        rope = {k: v for k, v in full.items() if k != "rope_theta"}
        return {**old, "rope_scaling": rope} if rope["rope_type"] != "default" else old
    rope = dict(rope)
    old["rope_theta"] = rope.pop("rope_theta")
    fraction = rope.pop("partial_rotary_factor", None)
    if fraction is not None and kind == "gpt_neox":
        old |= {"rotary_pct": fraction, "rotary_emb_base": old.pop("rope_theta")}
    elif fraction is not None:
        old["partial_rotary_factor"] = fraction
    return {**old, "rope_scaling": {"type": rope.pop("rope_type"), **rope} if rope["rope_type"] != "default" else None}


@pytest.mark.parametrize("kind", KINDS)
def test_configs_in_both_directions(kind):
    family, drawing = REGISTRY.get(kind), case(kind)

    @hypothesis.settings(max_examples=20, deadline=None)
    @hypothesis.given(drawing.settings, st.sampled_from(drawing.classes))
    def check(settings, name):
        hf_config = {"model_type": kind, "architectures": [name], **settings}
        config = family.build_config(hf_config, "config.json")
        assert canonical(family.build_config(legacy(kind, hf_config), "config.json")) == canonical(config)
        back = json.loads(json.dumps(family.write_config(config)))
        assert not family.unrepresented(config, back)
        assert canonical(family.build_config(back, "config.json")) == canonical(config)
        assert back["model_type"] == kind

    check()


# ---- models


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs the extra `parity`: torch is not installed")
    module = pytest.importorskip("transformers", reason="needs the extra `parity`: transformers is not installed")
    module.logging.set_verbosity_error()
    return module


def randomise(model, seed):
    """All parameters and buffers that are saved are random, so that one that is not read shows."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    saved = model.state_dict()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in saved or not tensor.is_floating_point():
                continue
            fixed = "embed_positions" if model.config.model_type == "pegasus" else "inv_freq"
            if fixed in name:  # sinusoids and frequencies
                continue
            noise = torch.randn(tensor.shape, generator=draw)
            if tensor.ndim > 1:
                tensor.copy_(noise * (0.5 if "embed" in name or "wte" in name else tensor.shape[-1] ** -0.5))
            else:
                tensor.add_(0.2 * noise)
    return model.eval()


def reference(transformers, kind, name, settings, seed, untied):
    """A random model of a class; `untied`: its read-out is not the table, though its config says so."""
    import torch

    config = transformers.AutoConfig.for_model(kind, **settings)
    config._attn_implementation = config._experts_implementation = "eager"
    model = randomise(getattr(transformers, name)(config), seed)
    head = model.get_output_embeddings()
    if kind == "switch_transformers":  # it scales the read-out where its config says that it is tied
        untied = False
    if untied and head is not None and head.weight is model.get_input_embeddings().weight:
        generator = torch.Generator().manual_seed(seed + 1)
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator) * 0.3)
    return model


IMAGES = ("vit", "deit", "ijepa", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_mae")
IMAGES += ("clip_vision_model", "siglip_vision_model")
TEXTS = ("clip_text_model", "siglip_text_model")
SOUND = "audio-spectrogram-transformer"
PAIRS = ("clip", "siglip", "llava")


def pixels_for(config, rng, batch=2):
    """Random pixels of a config's image."""
    sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    return rng.normal(size=(batch, config.num_channels, *sides)).astype(np.float32)


def images_for(kind, name, config, rng):
    """Pixels or a spectrogram, and the other inputs of a class."""
    if kind == SOUND:
        out = {"input_values": rng.normal(size=(2, config.max_length, config.num_mel_bins)).astype(np.float32)}
    else:
        out = {"pixel_values": pixels_for(config, rng)}
    if kind == "vit_mae":
        patches = (config.image_size // config.patch_size) ** 2
        return {**out, "noise": rng.random((2, patches)).astype(np.float32)}
    if name == "BeitForMaskedImageModeling":
        rows, columns = (side // config.patch_size for side in out["pixel_values"].shape[2:])
        hidden = rng.random((2, rows * columns)) < 0.5
        hidden[0, 0] = True
        return {**out, "bool_masked_pos": hidden, "labels": rng.integers(0, config.vocab_size, hidden.sum())}
    heads = name.endswith(("ForImageClassification", "ForAudioClassification"))
    return {**out, "labels": rng.integers(0, config.num_labels, 2)} if heads else out


def pairs_for(kind, config, rng, padding):
    """Pixels and tokens: captions, or tokens with places for the patches."""
    images, text = pixels_for(config.vision_config, rng), config.text_config
    ids = rng.integers(2, text.vocab_size - 1, (2, 9))
    mask = np.ones_like(ids)
    if kind == "llava":
        places = np.full((2, config.image_seq_length), config.image_token_index)
        ids = np.concatenate([ids[:, :2], places, ids[:, 2:]], axis=1)
        mask = np.ones_like(ids)
        return {"pixel_values": images, "input_ids": ids, "attention_mask": mask, "labels": ids}
    ids[:, -3] = text.vocab_size - 1  # the largest id, and where it is that of its end
    if padding == "right":
        mask[0, -2:] = 0
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}


def inputs_for(kind, name, config, rng, padding):
    """The inputs that a class takes: tokens, a mask of padding on one side, sentence types, labels; or images."""
    if kind in IMAGES or kind == SOUND:
        return images_for(kind, name, config, rng)
    if kind in PAIRS:
        return pairs_for(kind, config, rng, padding)
    vocab, length, batch = config.vocab_size, 11, 2
    ids = rng.integers(0, vocab, (batch, length))
    if kind in TEXTS:
        ids[:, 5] = vocab - 1  # the largest id, and where it is that of its end
    mask = np.ones_like(ids)
    if padding == "right":
        mask[0, -4:] = 0
    elif padding == "left":
        mask[0, :4] = 0
    out = {"input_ids": np.where(mask == 1, ids, 0)}
    if padding != "none":
        out["attention_mask"] = mask
    if kind == "esm":  # a mask in every row
        out["input_ids"][:, 5] = config.mask_token_id
    if kind in ("roberta", "xlm-roberta", "camembert"):
        out["input_ids"] = np.where(mask == 1, ids, config.pad_token_id)
    types = {"xlnet": 2}.get(kind) or getattr(config, "type_vocab_size", 1)
    if types > 1:
        out["token_type_ids"] = rng.integers(0, types, ids.shape)
    seen = mask * np.pad(mask, ((0, 0), (1, 0)), constant_values=1)[:, :-1]  # nothing is predicted from padding
    labels = np.where((seen == 1) & (rng.random(ids.shape) < 0.7), rng.integers(0, vocab - 1, ids.shape), -100)
    if name.endswith("EncoderModel") or kind in TEXTS:
        return out
    if config.is_encoder_decoder:
        target = rng.integers(0, vocab, (batch, 7))
        seen = np.ones_like(target)
        seen[1, 5:] = 0
        out |= {"decoder_input_ids": target, "decoder_attention_mask": seen}
        labels = np.where(seen == 1, rng.integers(0, vocab, target.shape), -100)
    if name == "ElectraForPreTraining":
        labels = rng.integers(0, 2, ids.shape)
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        return out
    if name == "BertForPreTraining":
        out["next_sentence_label"] = rng.integers(0, 2, batch)
    if name == "AlbertForPreTraining":
        out["sentence_order_label"] = rng.integers(0, 2, batch)
    return {**out, "labels": labels}


def run(model, inputs):
    """Outputs of a model of `transformers` by name, NumPy."""
    import torch

    sparse = {"output_router_logits": True} if hasattr(model.config, "router_aux_loss_coef") else {}
    with torch.no_grad():
        out = model(**{k: torch.tensor(v) for k, v in inputs.items()}, output_hidden_states=True, **sparse)
    flat = {}
    for name, value in out.items():
        if isinstance(value, torch.Tensor):
            flat[name] = value.numpy()
        elif name.endswith(("hidden_states", "router_logits")) and value is not None:
            flat |= {f"{name}.{i}": part.numpy() for i, part in enumerate(value)}
    return flat


def compared(names, name, config):
    """The outputs that both give; what `transformers` counts otherwise than its papers is left out."""
    names = [n for n in names if not n.startswith(("past_key", "mems"))]
    if getattr(config, "encoder_sparse_step", 2) == 1:  # it then leaves out the losses of routers
        names = [n for n in names if not n.endswith("loss")]
    return names


def close(got, want, inputs, name):
    """Asserts that two outputs are equal at positions that are not padding."""
    for key in ("decoder_attention_mask", "attention_mask"):
        mask = inputs.get(key)
        if mask is not None and got.ndim > 1 and got.shape[:2] == mask.shape:
            got, want = got[mask == 1], want[mask == 1]
        elif mask is not None and got.ndim == 2 and len(got) == mask.size:
            got, want = got[mask.reshape(-1) == 1], want[mask.reshape(-1) == 1]
    np.testing.assert_allclose(got, want, **TOLERANCE, err_msg=name)


def both_ways(transformers, folder, kind, name, settings, seed, padding, untied):
    model = reference(transformers, kind, name, settings, seed, untied)
    model.save_pretrained(folder / "original")
    inputs = inputs_for(kind, name, model.config, np.random.default_rng(seed), padding)
    want = run(model, inputs)

    loaded = hf.load(folder / "original")
    got = loaded.forward(**inputs)
    names = compared(want, name, model.config)
    assert names and set(names) <= set(got), sorted(set(names) - set(got))
    names = sorted(names, key=lambda key: (key == "loss", "logits" in key))  # the first outputs first
    for key in names:
        assert got[key].shape == want[key].shape, key
        close(got[key], want[key], inputs, f"imported: {key}")

    # config.json is written from the configuration alone, as for a model that was trained in ssljax.
    hf.save(dataclasses.replace(loaded, hf_config={}, folder=None), folder / "exported")
    auto = transformers.AutoConfig.from_pretrained(folder / "exported")
    assert auto.model_type == kind
    cls = getattr(transformers, auto.architectures[0])
    opened, info = cls.from_pretrained(folder / "exported", **PLAIN, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    again = run(opened.eval(), {k: v for k, v in inputs.items() if k != "labels" or "loss" in want})
    if kind == "switch_transformers":  # the weights of the routers' losses are the objective's, not exported
        again.pop("loss", None)
    for key in names:
        if key in again:
            close(again[key], want[key], inputs, f"exported: {key}")
    assert "logits" not in want or "logits" in again
    if kind != "siglip_text_model":  # AutoModel does not know it
        assert transformers.AutoModel.from_pretrained(folder / "exported", **PLAIN) is not None


def check(transformers, tmp_path_factory, kind, count):
    drawing = case(kind)

    @drawn(count)
    @hypothesis.given(
        drawing.settings,
        st.sampled_from(drawing.classes),
        st.integers(0, 2**16),
        st.sampled_from(["none", "right", "left"]),
        st.booleans(),
    )
    def one(settings, name, seed, padding, untied):
        folder = tmp_path_factory.mktemp(kind)
        both_ways(transformers, folder, kind, name, settings, seed, padding, untied)

    one()


@pytest.mark.parametrize("kind", daily(KINDS, 2))
def test_a_few_models(transformers, tmp_path_factory, kind):
    check(transformers, tmp_path_factory, kind, 2)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_many_models(transformers, tmp_path_factory, kind):
    check(transformers, tmp_path_factory, kind, 20)


# Decoders without a stored reference model, whose gradients and decodings are compared with a live one.
SIZES = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 20, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"num_hidden_layers": 4, "max_position_embeddings": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA3_ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
GEMMA3_ROPE = {"full_attention": GEMMA3_ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
DECODERS = {
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {**GROUPED, "num_hidden_layers": 6, "head_dim": 12, "sliding_window": 3, "rope_parameters": GEMMA3_ROPE},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**GROUPED, "head_dim": 12, **EXPERTS, "decoder_sparse_step": 2}),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, "sliding_window": 3, "partial_rotary_factor": 0.75}),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", {**SIZES, "bos_token_id": 0, "local_attention": 6}),
}


@pytest.fixture(scope="module", params=DECODERS)
def pair(request, transformers, tmp_path_factory):
    """A random decoder of `transformers` and its copy."""
    name, settings = DECODERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = reference(transformers, request.param, name, settings, 1, False)
    model.save_pretrained(folder)
    return model, hf.load(folder)


def in_file(name, value):
    """{name in a file: value} of a parameter in memory, in which experts and their maps are stacked."""
    if name.endswith("experts.gate_up_proj"):
        parts = {"gate_proj": np.split(value, 2, 1)[0], "up_proj": np.split(value, 2, 1)[1]}
    elif name.endswith("experts.down_proj"):
        parts = {"down_proj": value}
    else:
        return {name: value}
    stem = name.rpartition(".")[0]
    return {f"{stem}.{e}.{part}.weight": each for part, experts in parts.items() for e, each in enumerate(experts)}


def test_gradients_of_a_decoder(pair):
    import torch

    model, copy = pair
    ids = np.random.default_rng(2).integers(1, 53, (2, 11))
    model.zero_grad()
    model(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
    want = {}
    for name, parameter in model.named_parameters():
        want |= in_file(name, parameter.grad.numpy())

    def loss(params):
        inputs, hf_config = {"input_ids": ids, "labels": ids}, {**copy.hf_config, "router_aux_loss_coef": 0.0}
        return copy.family.outputs(copy.module, params, inputs, hf_config)["loss"]

    got = hf.tensors_of(copy, jax.jit(jax.grad(loss))(copy.variables["params"]))
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, err_msg=name, **TOLERANCE)
        assert np.abs(value).max() > 1e-3, name


def test_greedy_decoding_of_a_decoder(pair):
    import torch

    model, copy = pair
    prompts = np.random.default_rng(3).integers(1, 53, (3, 7))
    with torch.no_grad():
        want = model.generate(torch.tensor(prompts), max_new_tokens=12, do_sample=False, eos_token_id=None)
    made = generate(copy.module, copy.variables["params"], prompts, Sampling(max_new_tokens=12))
    np.testing.assert_array_equal(np.stack(made), want.numpy()[:, 7:])


SMALL = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"image_size": 16, "patch_size": 4}
STRETCHED = {
    "vit": ("ViTModel", {}),
    "deit": ("DeiTModel", {}),
    "ijepa": ("IJepaModel", {}),
    "beit": ("BeitModel", {"use_absolute_position_embeddings": True, "use_relative_position_bias": True}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "dinov3_vit": ("DINOv3ViTModel", {"num_register_tokens": 2}),
}


@pytest.mark.parametrize("kind", STRETCHED)
def test_images_of_other_sizes(transformers, tmp_path, kind):
    """Larger, oblong and smaller than the images that the table of positions was learned for."""
    import torch

    name, more = STRETCHED[kind]
    settings = SMALL | more
    model = reference(transformers, kind, name, settings, 0, False)
    model.save_pretrained(tmp_path)
    loaded = hf.load(tmp_path)
    asked = {"interpolate_pos_encoding": True} if kind in ("vit", "deit", "ijepa", "beit") else {}
    for shape in ((24, 24), (16, 24), (8, 8)):
        images = np.random.default_rng(0).normal(size=(2, 3, *shape)).astype(np.float32)
        with torch.no_grad():
            want = model(torch.tensor(images), **asked).last_hidden_state.numpy()
        got = loaded.forward(pixel_values=images)["last_hidden_state"]
        np.testing.assert_allclose(got, want, **TOLERANCE, err_msg=str(shape))


UNEVEN = {
    "vit": ("ViTModel", SMALL | {"image_size": 18}),
    "dinov2": ("Dinov2Model", SMALL | {"image_size": 18}),
    "siglip": ("SiglipModel", {"vision_config": SMALL | {"image_size": 18}, "text_config": SMALL | {"vocab_size": 30}}),
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_pixels_beyond_the_last_patch_are_left_out(transformers, tmp_path, kind):
    """18 pixels hold four patches of four (384 hold 27 of 14 in the largest SigLIP)."""
    import torch

    name, settings = UNEVEN[kind]
    model = reference(transformers, kind, name, settings, 0, False)
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 18, 18)).astype(np.float32)}
    inputs |= {"input_ids": np.arange(14).reshape(2, 7)} if kind == "siglip" else {}
    output = "logits_per_image" if kind == "siglip" else "last_hidden_state"
    with torch.no_grad():
        want = model(**{key: torch.tensor(value) for key, value in inputs.items()})[output].numpy()
    np.testing.assert_allclose(hf.load(tmp_path).forward(**inputs)[output], want, **TOLERANCE)


@pytest.mark.parametrize("name", test_export.IMAGES)
def test_an_encoder_of_images_of_ssljax(transformers, tmp_path, name):
    module, params, _, images = test_export.an_encoder(name)
    hf.save(of_module(module, params, False), tmp_path)
    opened = transformers.AutoModel.from_pretrained(tmp_path).eval()
    got = run(opened, {"pixel_values": np.asarray(images).transpose(0, 3, 1, 2)})["last_hidden_state"]
    want = module.apply({"params": params}, images)
    front = [] if want.prefix is None else [want.prefix]
    np.testing.assert_allclose(got, np.concatenate([*front, want.tokens], axis=1), **TOLERANCE)


def test_a_pair_of_towers_of_ssljax(transformers, tmp_path):
    ssljax.run.train(test_export.pairs(tmp_path, {"name": "bpe", "vocab_size": 280}), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    inputs, scores = test_export.scored(tmp_path / "run")
    opened = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(run(opened, inputs)["logits_per_text"], scores, **TOLERANCE)


# Keys without which a config of `transformers` is not supported, or makes no model.
NEEDED = {"esm": {"position_embedding_type": "rotary", "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32}}


def shortened(whole):
    """Configs with one key less, with null in its place, and the same within groups: [(what, config)]."""
    for key, value in whole.items():
        rest = {k: v for k, v in whole.items() if k != key}
        yield f"without {key}", rest
        yield f"{key}: null", {**rest, key: None}
        if isinstance(value, dict) and key.endswith("_config"):
            inner = [(what, part) for what, part in shortened(value) if "model_type" not in what]
            yield from ((f"{key}: {what}", {**rest, key: part}) for what, part in inner)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_absent_or_null_has_the_value_that_transformers_gives_it(transformers, kind):
    """A config that `transformers` refuses may be refused too, in one line."""
    family, needed = REGISTRY.get(kind), NEEDED.get(kind, {})

    def complete(settings):
        config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if k != "model_type"})
        return json.loads(config.to_json_string(use_diff=False))

    def read(settings):
        return canonical(family.build_config({**settings, "model_type": kind}, "config.json"))

    whole = complete(needed)
    assert read(needed) == read(whole)
    for what, short in shortened({k: v for k, v in whole.items() if k != "model_type"}):
        if any(key in what for key in needed):
            continue
        try:
            want = read(complete(short))
        except Exception:  # the validation of `transformers` raises all kinds of errors
            want = None
        try:
            got = read(short)
        except UserError as error:
            assert want is None and "\n" not in str(error), what
        else:
            assert want is None or got == want, what


@pytest.mark.parametrize("kind", pairs.DECODERS)
def test_the_defaults_of_the_decoders_of_llava(transformers, kind):
    whole = transformers.LlavaConfig(
        text_config={"model_type": kind}, vision_config={"model_type": "clip_vision_model"}
    )
    whole = json.loads(whole.to_json_string(use_diff=False))
    short = {**whole, "text_config": {"model_type": kind}}
    llava = REGISTRY.get("llava")
    assert canonical(llava.build_config(short, "config.json")) == canonical(llava.build_config(whole, "config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"model_type": "pixtral"}}, "vision_config.model_type: 'pixtral' is not supported"),
        ({"text_config": {"model_type": "phi"}}, "text_config.model_type: 'phi' is not supported"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy: 'cls' is not supported"),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            r"'default' is not supported \('full' of siglip",
        ),
        ({"vision_feature_layer": [-1, 30]}, r"feature_layer: got \(-1, 30\), must be in -13\.\.12"),
        ({"vision_feature_layer": []}, r"feature_layer: got \(\), must be in"),
    ],
)
def test_a_llava_that_is_not_supported(changes, message):
    hf_config = {"model_type": "llava", "vision_config": {"patch_size": 32}, "text_config": {}, **changes}
    with pytest.raises(UserError, match=message):
        REGISTRY.get("llava").build_config(hf_config, "config.json")


EARLY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}


@pytest.mark.parametrize("keys", [("text_config",), ("vision_config",), ("text_config", "vision_config")])
def test_the_groups_of_early_files_of_clip(transformers, tmp_path, keys):
    """`text_config_dict` and `vision_config_dict` replace the other groups, absent keys included."""
    import torch

    groups = {"text_config": {**EARLY, "layer_norm_eps": 0.3}, "vision_config": {**EARLY, "patch_size": 56}}
    early = {**groups, **{f"{key}_dict": {**groups[key], "hidden_act": "relu"} for key in keys}}
    for key in keys:
        early[f"{key}_dict"].pop("layer_norm_eps", None)
    early["text_config"] = None if "text_config" in keys else early["text_config"]
    model = reference(transformers, "clip", "CLIPModel", early, 0, False)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**early, "model_type": "clip", "architectures": ["CLIPModel"]}))
    rng = np.random.default_rng(0)
    inputs = {"pixel_values": rng.normal(size=(2, 3, 224, 224)).astype(np.float32)}
    inputs["input_ids"] = np.array([[49_406, 320, 49_407], [49_406, 49_407, 7]])
    with torch.no_grad():
        want = model(**{key: torch.tensor(value) for key, value in inputs.items()})
    got = hf.load(tmp_path).forward(**inputs)
    for name in ("text_embeds", "image_embeds", "logits_per_text"):
        np.testing.assert_allclose(got[name], want[name].numpy(), **TOLERANCE, err_msg=name)


def test_unrepresented_values_are_named():
    llama = REGISTRY.get("llama")
    hf_config = {"model_type": "llama", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1}
    config = llama.build_config({**hf_config, "num_attention_heads": 2, "intermediate_size": 9}, "config.json")
    for change in ({"norm_position": "post"}, {"norm": "layer"}, {"layer_kinds": ("local",), "window": 3}):
        other = dataclasses.replace(config, **change)
        assert llama.unrepresented(other, llama.write_config(other))[0].startswith(f"model.{next(iter(change))}: ")
    free = dataclasses.replace(config, dropout=0.1, remat="none", init="xavier", pool="mean")
    assert llama.write_config(free) == llama.write_config(config)
