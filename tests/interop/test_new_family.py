"""A family that is not in the package, from one class of fields and rules: what a new architecture needs.

A new family is one file in `ssljax/interop/families/` and its line in the registry there. In this test the file is the
test itself, and the line a patch. The model is one of `ssljax/models` with settings that no registered family has.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.interop import hf
from ssljax.interop.codecs import GATED_ACTIVATION, names
from ssljax.interop.export import of_module
from ssljax.interop.families import REGISTRY
from ssljax.interop.family import Family, causal_heads
from ssljax.interop.fields import Field, counts
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rotary import Rotary
from ssljax.interop.rules import blocks, named, readout
from ssljax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class ToyConfig(LlamaConfig):
    """LLaMA with norms after each sum and normalised queries and keys."""

    norm_position: str = "post"
    qk_norm: bool = True
    final_norm: bool = False


BLOCK = {f"attention/{name}": f"attn.w{name}" for name in ("q", "k", "v", "out")}
BLOCK |= {"attention/q_norm": "attn.nq", "attention/k_norm": "attn.nk", "attention_norm": "n1", "mlp_norm": "n2"}
BLOCK |= {"mlp/gate": "ff.gate", "mlp/in": "ff.up", "mlp/out": "ff.down"}
TOY = Family(
    "toy",
    (
        *counts(vocab_size="words", width="size", depth="layers", heads="heads", mlp_dim="inner", max_len="length"),
        Field("norm_eps", "eps", default=1e-5),
        Field("activation", "act", GATED_ACTIVATION, "silu"),
        Field("tied", "shared", default=False),
        Field("qk_norm", "norms", names({"heads": True, "none": False}), "heads"),
        Rotary(),
    ),
    causal_heads("Toy"),
    lambda config: [*named({"embed": "core.words"}), *blocks("core.layers.{i}", BLOCK), *readout("words")],
    causal_lm,
    CAUSAL_LM,
    model=f"{__name__}:ToyConfig",
    prefix="core.",
)
HF_CONFIG = {"words": 30, "size": 16, "layers": 2, "heads": 2, "inner": 20, "length": 12, "eps": 1e-3, "act": "gelu"}


@pytest.fixture
def toy(monkeypatch):
    """The family in the registry, and a random model of it."""
    monkeypatch.setitem(REGISTRY.entries, "toy", f"{__name__}:TOY")
    config = TOY.build_config({**HF_CONFIG, "rope_parameters": {"rope_theta": 50.0}}, "config.json")
    module = config.standalone()
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0))["params"])
    return hf.Model(module, {"params": params}, {}, config, TOY)


def test_a_new_family_is_saved_and_loaded(toy, tmp_path):
    hf.save(toy, tmp_path)
    loaded = hf.load(tmp_path)
    assert loaded.config == toy.config and loaded.family is TOY
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], toy.variables["params"])
    assert json.loads((tmp_path / "config.json").read_text()).items() >= HF_CONFIG.items()
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded.forward(input_ids=ids)["logits"], toy.forward(input_ids=ids)["logits"])


def test_a_trained_model_is_exported_as_the_new_family(toy, tmp_path):
    exported = of_module(toy.module, toy.variables["params"], causal=True)
    assert exported.hf_config["model_type"] == "toy" and exported.hf_config["architectures"] == ["ToyForCausalLM"]
    hf.save(exported, tmp_path)
    assert hf.load(tmp_path).config == toy.config


def test_a_value_without_a_field_is_not_dropped(toy):
    other = dataclasses.replace(toy.config, embedding_scale=True)
    assert TOY.unrepresented(other, TOY.write_config(other)) == ["model.embedding_scale: True"]
    with pytest.raises(UserError, match="act: 'quick_gelu' is not supported"):
        TOY.build_config({**HF_CONFIG, "act": "quick_gelu"}, "config.json")
