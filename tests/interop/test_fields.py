"""The fields of every family in both directions: the values that a field writes are read again as the same values."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping

import hypothesis
import pytest
from hypothesis import strategies as st
from random_configs import CASES

from ssljax.base.errors import UserError
from ssljax.interop import fields
from ssljax.interop.codecs import COUNT, OR_NONE, SAME, Codec, names, only
from ssljax.interop.families import REGISTRY
from ssljax.interop.fields import Field, constant, counts, required

# Keys of which `random_configs` draws one value, with another one, for the classes that take it.
MORE = {
    "esm": ("EsmForMaskedLM", {"rope_theta": 50.0}),
    "dinov3_vit": ("DINOv3ViTModel", {"rope_theta": 50.0}),
    "beit": ("BeitForImageClassification", {"use_mean_pooling": False}),
}


def draws(kind, count=40):
    """hf_configs of a family, drawn at random."""
    case, more, out = CASES[kind], MORE.get(kind), []
    phases = [hypothesis.Phase.generate]

    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, phases=phases, database=None)
    @hypothesis.given(case.settings, st.sampled_from(case.classes))
    def draw(settings, name):
        out.append({"model_type": kind, "architectures": [name], **settings})

    draw()
    out += [{**drawn, "architectures": [more[0]], **more[1]} for drawn in out[:4]] if more else []
    return json.loads(json.dumps(out))


def agrees(config, name, read):
    """True if a configuration has the value that was read for a key, be it stated or computed from other keys."""
    return equal(getattr(config, name), read) or equal(fields._value(config, name), read)


def equal(value, read):
    if isinstance(read, Mapping):  # a group: key by key
        return all(agrees(value, name, inner) for name, inner in read.items() if name not in ("name", "preset"))
    return tuple(value) == tuple(read) if isinstance(read, list | tuple) else value == read


def one_way(family, config):
    """The keys whose values change when all fields of a family are written and read again."""
    head = next((head for head in family.heads if head.fits(config)), family.heads[-1])
    written = family.complete(json.loads(json.dumps(family.write_config(config))))
    read = fields.read_all([*family.fields, *head.fields], written) | dict(head.values)
    return [name for name, value in read.items() if name != "extras" and not agrees(config, name, value)]


@pytest.mark.parametrize("kind", REGISTRY)
def test_every_field_is_read_and_written(kind):
    family = REGISTRY.get(kind)
    for hf_config in draws(kind):
        assert not one_way(family, family.build_config(hf_config, "config.json")), hf_config


@pytest.mark.parametrize("kind", REGISTRY)
def test_the_draws_reach_every_codec(kind):
    """The test above sees a field that is only read if its value is drawn, and is not always the default."""
    family, values = REGISTRY.get(kind), defaultdict(set)
    written_as_read = (SAME, OR_NONE, COUNT)
    odd = [f for f in family.fields if not isinstance(f, Field) or (f.codec not in written_as_read and f.hf_config)]
    for hf_config in draws(kind):
        for i, field in enumerate(odd):
            values[i].add(json.dumps(field.read(family.complete(hf_config)), default=str))
    same = [
        odd[i] for i, each in values.items() if len(each) == 1 and each != {"{}"}
    ]  # not those that are only written
    assert not same


def test_a_field_that_is_only_read_or_only_written_is_found():
    family = REGISTRY.get("llama")
    config = family.build_config(draws("llama")[3], "config.json")
    for broken in (
        Field("norm_eps", "rms_norm_eps", Codec(lambda value: value, lambda value: 1e-5), 1e-6),  # never written
        Field("norm_eps", "rms_norm_eps", Codec(lambda value: 0.5, lambda value: value), 1e-6),  # never read
        Field("mlp_dim", "intermediate_size", Codec(lambda value: value + 1, lambda value: value)),
    ):
        config = dataclasses.replace(config, norm_eps=0.25)
        changed = dataclasses.replace(family, fields=(*family.fields, broken))
        assert one_way(changed, config) == [broken.config]
    assert not one_way(family, config)


ODD = (None, True, 0, -1, 2.5, "", "tanh", [], [1, 2], {"a": 1})


def keys_of(hf_config):
    """The paths of all keys, those of groups included."""
    for key, value in hf_config.items():
        yield (key,)
        if isinstance(value, Mapping):
            yield from ((key, *rest) for rest in keys_of(value))


@pytest.mark.parametrize("kind", REGISTRY)
def test_a_value_of_a_wrong_kind_is_one_line(kind):
    """A wrong value is accepted or refused in a line that does not list it as supported."""
    family = REGISTRY.get(kind)
    whole = family.complete(draws(kind, 3)[0])
    others = dict.fromkeys(
        ("rope_scaling", "rope_parameters", "layer_types", "id2label", "text_config", "vision_config")
    )
    for path in keys_of({**others, **whole, "architectures": []}):
        for value in ODD:
            hf_config = json.loads(json.dumps(whole))
            group = hf_config
            for key in path[:-1]:
                group = group[key]
            group[path[-1]] = value
            try:
                family.build_config(hf_config, "config.json")
            except UserError as error:
                assert "\n" not in str(error), (path, value)
                listed = str(error).rpartition("(supported: ")[2].rstrip(")").split(", ")
                assert str(value) not in listed or not value, (path, value, str(error))


# ---- declarations by themselves


@dataclasses.dataclass
class Config:
    width: int = 8
    own: int | None = None
    kind: str = "a"


def test_a_field_of_one_key():
    (field,) = counts(width=("hidden_size", 4))
    assert field.defaults == {"hidden_size": 4}
    assert field.read({"hidden_size": 3}) == {"width": 3} and field.read({}) == field.read({"hidden_size": None}) == {}
    assert field.write(Config(3)) == {"hidden_size": 3}
    with pytest.raises(UserError, match=r"^hidden_size: got 0, must be at least 1$"):
        field.read({"hidden_size": 0})


def test_null_is_a_value_where_the_codec_says_so():
    assert Field("own", "cap", OR_NONE).read({"cap": None}) == {"own": None}
    assert Field("own", "cap").read({"cap": None}) == {}


def test_a_field_of_several_keys_needs_all_without_a_default():
    field = Field(
        ("own", "width"), ("embedding", "hidden"), Codec(lambda own, width: (own, width), lambda *v: v), (None,)
    )
    assert field.read({**field.defaults, "hidden": 8}) == {"own": None, "width": 8}
    assert field.write(Config()) == {"embedding": None, "hidden": 8}
    with pytest.raises(KeyError, match="hidden"):
        field.read(field.defaults)


def test_values_without_a_name():
    codec = names({"first": "a", "second": "a", "third": "b"})
    assert [codec.read(name) for name in ("first", "second", "third")] == ["a", "a", "b"]
    assert codec.write("a") == "first" and codec.read(codec.write("unknown")) != "unknown"
    with pytest.raises(UserError, match=r"act: 'x' is not supported \(supported: first, second, third\)"):
        Field("kind", "act", codec).read({"act": "x"})


def test_constants_and_required_values():
    assert constant("kind", "b").read({}) == {"kind": "b"} and constant("kind", "b").write(Config()) == {}
    field = required("is_decoder", False)
    assert field.read({}) == field.read({"is_decoder": None}) == {} and field.write(Config()) == {"is_decoder": False}
    with pytest.raises(UserError, match=r"is_decoder: True is not supported \(only False\)"):
        field.read({"is_decoder": True})
    assert only(1).write() == 1


# ---- options of a config.json that are not supported

SMALL = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 9, "num_hidden_layers": 8}
SCALED = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("phi3", {"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.short_factor: missing"),
        ("phi3", {"rope_scaling": {"type": "linear"}}, r"rope_type 'linear' is not supported \(default, longrope\)"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, r"rope_type 'longrope' is not supported \(default, linear"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping: 50\.0 is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True is not supported"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": SCALED}}, "rope_parameters: sliding layers must"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers: experts in layers 1, 2, 3, 4, 5, 6, 7 are not"),
        ("qwen3_moe", {"decoder_sparse_step": 3}, "decoder_sparse_step: experts in layers 2, 5 are not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: got 0, must be at least 1"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers: got 2 values, must be at least the 8 layers"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval: got 0, must be at least 1"),
        ("modernbert-decoder", {"local_attention": 1}, r"window: got 0, must be >= 1"),
    ],
)
def test_an_option_that_is_not_supported_is_named_in_one_line(kind, changes, message):
    with pytest.raises(UserError, match=message) as error:
        REGISTRY.get(kind).build_config({**SMALL, **changes}, "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dense", [[0], [1], []])
def test_a_period_of_layers_with_experts(dense):
    step = 1 if dense else 2
    hf_config = {**SMALL, "num_hidden_layers": 2, "mlp_only_layers": dense, "decoder_sparse_step": step}
    experts = REGISTRY.get("qwen3_moe").build_config(hf_config, "config.json").experts
    assert [experts.at(i) for i in range(4)] == [dense == [1], dense != [1]] * 2
