"""Unsuitable inputs of `Model.forward` are refused in one line; other inputs give the outputs of `transformers`."""

import jax
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.interop import hf
from ssljax.interop.families import REGISTRY

IDS = np.array([[3, 4, 5], [6, 7, 8]])
PIXELS = np.zeros((2, 3, 8, 8), np.float32)
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = {**TEXT, "max_position_embeddings": 20, "type_vocab_size": 2, "architectures": ["BertForPreTraining"]}
GPT2 = {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2}
OPT = {**{k: v for k, v in TEXT.items() if k != "intermediate_size"}, "ffn_dim": 20, "max_position_embeddings": 20}
XLNET = {"vocab_size": 40, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 20}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
BART = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 20}
BART |= {
    f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("attention_heads", 2), ("ffn_dim", 20))
}
IMAGE = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 4}
VIT = {**IMAGE, "architectures": ["ViTForImageClassification"], "num_labels": 5}
BEIT = {**IMAGE, "architectures": ["BeitForMaskedImageModeling"], "vocab_size": 31, "use_mask_token": True}
CLIP = {"vision_config": IMAGE, "text_config": {**TEXT, "max_position_embeddings": 20}}
LLAVA = {"vision_config": IMAGE, "text_config": {**TEXT, "max_position_embeddings": 20}, "image_token_index": 39}
CONFIGS = {
    **{"bert": BERT, "gpt2": GPT2, "opt": OPT, "xlnet": XLNET, "t5": T5, "bart": BART, "vit": VIT, "beit": BEIT},
    **{"clip": CLIP, "llava": LLAVA, "vit_mae": {**IMAGE, "decoder_num_attention_heads": 2}},
    "electra": {**BERT, "embedding_size": 16, "architectures": ["ElectraForPreTraining"]},
    "roberta": {**BERT, "architectures": ["RobertaForMaskedLM"], "pad_token_id": 1},
    "audio-spectrogram-transformer": {
        **IMAGE,
        "num_mel_bins": 8,
        "max_length": 8,
        "architectures": ["ASTForAudioClassification"],
    },
}


def model(kind, **changes):
    """A random model of a family."""
    hf_config = {"model_type": kind, **CONFIGS[kind], **changes}
    family = REGISTRY.get(kind)
    config = family.build_config(hf_config, "config.json")
    module = config.standalone()
    variables = jax.eval_shape(module.initial, jax.random.key(0))
    return hf.Model(module, variables, hf_config, config, family)


PLACES = np.array([[1, 39, 39, 39, 39, 2]])
REFUSED = [
    ("gpt2", {"input_ids": IDS, "attn_mask": IDS}, r"attn_mask: .*labels\); did you mean 'attention_mask'\?"),
    ("gpt2", {"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids: is no input of the model"),
    ("gpt2", {"inputs_embeds": np.zeros((1, 3, 16))}, "inputs_embeds: is no input of the model"),
    ("gpt2", {}, "input_ids: missing"),
    ("gpt2", {"input_ids": None}, "input_ids: missing"),
    ("gpt2", {"input_ids": IDS[0]}, r"input_ids: got shape \[3\], must be \[B, T\]"),
    ("gpt2", {"input_ids": IDS[:, :0]}, r"input_ids: got shape \[2, 0\], must be \[B, T\]"),
    ("gpt2", {"input_ids": IDS * 1.0}, "input_ids: got float64, must be integers"),
    ("gpt2", {"input_ids": IDS + 40}, r"input_ids: got 43, must be in 0\.\.39"),
    ("gpt2", {"input_ids": IDS - 9}, r"input_ids: got -6, must be in 0\.\.39"),
    ("gpt2", {"input_ids": IDS, "attention_mask": np.ones((2, 5))}, r"got shape \[2, 5\], must be \[2, 3\]"),
    ("gpt2", {"input_ids": IDS, "labels": IDS + 40}, r"labels: got 43, must be in 0\.\.39 or -100"),
    ("gpt2", {"input_ids": IDS, "labels": IDS - 5}, "labels: got -2, must be"),
    ("gpt2", {"input_ids": IDS, "position_ids": IDS + 12}, r"position_ids: got 20, must be in 0\.\.19"),
    ("opt", {"input_ids": IDS, "position_ids": IDS - 6}, r"position_ids: got -3, must be in -2\.\.19"),
    ("roberta", {"input_ids": IDS, "position_ids": IDS + 13}, r"position_ids: got 20, must be in 0\.\.19"),
    ("bert", {"input_ids": IDS, "token_type_ids": IDS}, r"token_type_ids: got 3, must be in 0\.\.1"),
    ("bert", {"input_ids": IDS, "next_sentence_label": np.array([0, 2])}, "next_sentence_label: got 2"),
    ("electra", {"input_ids": IDS, "labels": IDS * 0 - 100}, r"labels: got -100, must be in 0\.\.1$"),
    ("xlnet", {"input_ids": IDS, "input_mask": IDS}, "input_mask: is no input of the model"),
    ("xlnet", {"input_ids": IDS, "mems": IDS}, "mems: is no input"),
    ("xlnet", {"input_ids": IDS, "perm_mask": np.ones((2, 3, 2))}, r"perm_mask: got .*, must be \[2, 3, 3\]"),
    ("t5", {"input_ids": IDS}, "decoder_input_ids: missing; it or labels must be given"),
    ("t5", {"input_ids": IDS, "decoder_input_ids": IDS + 40}, "decoder_input_ids: got 43"),
    ("vit", {"input_ids": IDS}, "input_ids: is no input"),
    ("vit", {}, "pixel_values: missing"),
    ("vit", {"pixel_values": PIXELS[:, :1]}, r"got shape \[2, 1, 8, 8\], must be \[B, 3, H, W\]"),
    ("vit", {"pixel_values": PIXELS, "labels": np.array([1, 5])}, r"labels: got 5, must be in 0\.\.4 or -100"),
    ("vit", {"pixel_values": PIXELS, "labels": np.array([1])}, r"labels: got shape \[1\], must be \[2\]"),
    ("vit_mae", {"pixel_values": PIXELS}, "noise: missing"),
    ("vit_mae", {"pixel_values": PIXELS, "noise": np.ones((2, 3))}, r"noise: got shape \[2, 3\], must be \[2, 4\]"),
    (
        "beit",
        {"pixel_values": PIXELS, "bool_masked_pos": np.ones((2, 4)), "labels": IDS[0]},
        "labels: got 3, .*8 hidden",
    ),
    ("audio-spectrogram-transformer", {"pixel_values": PIXELS}, "pixel_values: is no input"),
    ("clip", {"input_ids": IDS}, "pixel_values: missing"),
    ("clip", {"input_ids": IDS + 40, "pixel_values": PIXELS}, r"input_ids: got 43, must be in 0\.\.39"),
    ("llava", {"input_ids": PLACES[:, 1:4], "pixel_values": PIXELS[:1]}, "input_ids: got 3 image tokens .* 4 patches"),
    ("llava", {"input_ids": PLACES, "pixel_values": PIXELS}, "input_ids: got 4 image tokens .* 8 patches"),
]


@pytest.mark.parametrize(("kind", "inputs", "message"), REFUSED)
def test_unsuitable_inputs_are_refused_in_one_line(kind, inputs, message):
    with pytest.raises(UserError, match=message) as error:
        model(kind).forward(**inputs)
    assert "\n" not in str(error.value)


def test_labels_without_a_head():
    for kind, name, inputs in (
        ("bert", "BertModel", {"input_ids": IDS, "labels": IDS}),
        ("bert", "BertForMaskedLM", {"input_ids": IDS, "next_sentence_label": IDS[:, 0] * 0}),
        ("vit", "ViTModel", {"pixel_values": PIXELS, "labels": np.array([0, 1])}),
    ):
        with pytest.raises(UserError, match=f"{list(inputs)[1]}: is read by no head of the model"):
            model(kind, architectures=[name]).forward(**inputs)


class Noting(dict):
    """A dict that records the keys that are looked up."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("kind", CONFIGS)
def test_declared_inputs_are_read(kind):
    lengths = {"B": 2, "T": 3, "S": 5, "P": 1, "L": 4, "I": 2, "N": 4, "C": 3, "H": 8, "W": 8, "F": 8}
    made = model(kind)
    axes = {**made.family.inputs.required, **made.family.inputs.optional}
    lengths |= {"T": 8} if "F" in "".join(axes.values()) else {}
    inputs = Noting({name: np.zeros([lengths[a] for a in letters], np.int32) for name, letters in axes.items()})
    hf_config = made.family.complete(made.hf_config)
    jax.eval_shape(lambda params: made.family.outputs(made.module, params, inputs, hf_config), made.variables["params"])
    assert inputs.keys() <= inputs.read


def test_a_pair_may_have_more_texts_than_images():
    family = model("clip")
    out = jax.eval_shape(family._run, family.variables["params"], {"input_ids": IDS, "pixel_values": PIXELS[:1]})
    assert out["logits_per_text"].shape == (2, 1) and "loss" not in out


# ---- against `transformers`

POSITIONS = np.array([[5, 2, 7, 0, 1], [3, 3, 4, 9, 8]])


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs the extra `parity`: torch is not installed")
    return pytest.importorskip("transformers", reason="needs the extra `parity`: transformers is not installed")


def both(transformers, folder, kind, name, **inputs):
    """Outputs of one random model, by transformers and by ssljax."""
    import torch

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **CONFIGS.get(kind, TEXT))
    original = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        out = original(**{k: torch.tensor(v) for k, v in inputs.items()})
    original.save_pretrained(folder)
    return out, hf.load(folder).forward(**inputs)


CLASSES = [
    ("bert", "BertForMaskedLM"),
    ("roberta", "RobertaForMaskedLM"),
    ("distilbert", "DistilBertForMaskedLM"),
    ("albert", "AlbertForMaskedLM"),
    ("electra", "ElectraForMaskedLM"),
    ("modernbert", "ModernBertForMaskedLM"),
    ("opt", "OPTForCausalLM"),
    ("llama", "LlamaForCausalLM"),
]
CONFIGS |= {
    "distilbert": {"vocab_size": 40, "dim": 16, "hidden_dim": 20, "n_layers": 1, "n_heads": 2},
    "albert": {**BERT, "embedding_size": 8},
    "modernbert": {**TEXT, "pad_token_id": 0, "local_attention": 4},
}


@pytest.mark.parametrize(("kind", "name"), CLASSES)
def test_positions(transformers, tmp_path, kind, name):
    ids = np.arange(10, 20).reshape(2, 5)
    want, got = both(transformers, tmp_path, kind, name, input_ids=ids, position_ids=POSITIONS)
    np.testing.assert_allclose(got["logits"], want.logits.numpy(), atol=1e-4, rtol=1e-4)


def test_bart_reads_its_input_twice(transformers, tmp_path):
    want, got = both(transformers, tmp_path, "bart", "BartForConditionalGeneration", input_ids=IDS)
    np.testing.assert_allclose(got["logits"], want.logits.numpy(), atol=1e-4, rtol=1e-4)
