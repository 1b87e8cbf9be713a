"""Small random configurations of architectures of `transformers`: keyword arguments of their config classes.

Nothing here needs `transformers`. `CASES[model_type]` has the classes to build and a strategy for their settings.
"""

from typing import NamedTuple

from hypothesis import strategies as st

PLAIN = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu", "tanh"]
GATES = ["gelu", "gelu_pytorch_tanh", "relu", "silu"]
one_of = st.sampled_from


class Case(NamedTuple):
    """Classes with and without heads, and a strategy for the settings."""

    classes: tuple[str, ...]
    settings: st.SearchStrategy


@st.composite
def shape(draw, depth=(1, 2, 3), widths=(4, 6, 10, 16)):
    """Vocabulary, heads, width of a head, groups, width inside and number of layers."""
    heads = draw(one_of([1, 2, 3, 4]))
    groups = draw(one_of([g for g in (1, 2, 3, 4) if heads % g == 0]))
    numbers = {"heads": heads, "groups": groups, "head": draw(one_of(widths)), "vocab": draw(one_of([31, 40, 53]))}
    return {**numbers, "inner": draw(one_of([8, 20, 33])), "depth": draw(one_of(depth))}


def sizes(s):
    """A shape under the names that most configurations have for it."""
    heads = {"hidden_size": s["heads"] * s["head"], "num_attention_heads": s["heads"]}
    return {**heads, "intermediate_size": s["inner"], "num_hidden_layers": s["depth"]}


@st.composite
def rope(draw, kinds=("default", "linear", "dynamic", "llama3", "yarn")):
    """Rotary positions, with lengths that the sequences of the tests exceed."""
    kind, longest = draw(one_of(kinds)), draw(one_of([4, 8, 64]))
    out = {"rope_type": kind, "rope_theta": draw(one_of([50.0, 10_000.0, 1e6]))}
    if kind != "default":
        out["factor"] = draw(one_of([1.0, 1.5, 4.0]))
    if kind == "llama3":
        low = draw(one_of([0.5, 1.0]))
        out |= {"low_freq_factor": low, "high_freq_factor": draw(one_of([2.0, 4.0]))}
    if kind in ("llama3", "yarn"):
        out["original_max_position_embeddings"] = draw(one_of([4, 16, 64]))
    if kind == "yarn":
        out |= draw(one_of([{}, {"attention_factor": 1.3}, {"mscale": 1.0, "mscale_all_dim": 0.5}]))
        out |= draw(one_of([{}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}]))
    return {"rope_parameters": out, "max_position_embeddings": longest}


@st.composite
def llama(draw, biases=(), windows=None, acts=GATES, head_dim=True, act="hidden_act"):
    """LLaMA and its kin; `windows`: how the family says which layers are local."""
    s = draw(shape())
    out = {
        "vocab_size": s["vocab"],
        **sizes(s),
        "num_key_value_heads": s["groups"],
        "rms_norm_eps": draw(one_of([1e-6, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        act: draw(one_of(acts)),
        **draw(rope()),
        **{key: draw(st.booleans()) for key in biases},
    }
    own = draw(one_of([None, 4, 8, 14]))
    if head_dim:
        out["head_dim"] = own or s["head"]
    window = draw(one_of([1, 2, 5, 32]))
    kinds = [draw(one_of(["sliding_attention", "full_attention"])) for _ in range(s["depth"])]
    if windows == "all":
        out["sliding_window"] = draw(one_of([None, window]))
    elif windows == "some":
        out |= {"sliding_window": window, "layer_types": kinds}
    elif windows == "asked":
        asked = draw(st.booleans())
        out |= {"sliding_window": window, "use_sliding_window": asked}
        first = draw(one_of([0, 1, 2]))
        out |= draw(one_of([{"max_window_layers": first}, {"layer_types": kinds}])) if asked else {}
    return out


@st.composite
def gemma2(draw):
    caps = {"attn_logit_softcapping": draw(one_of([None, 0.5, 50.0]))}
    caps |= {"final_logit_softcapping": draw(one_of([None, 1.0, 30.0]))}
    scale = {"query_pre_attn_scalar": draw(one_of([4, 7, 256]))}
    return {**draw(llama(("attention_bias",), "some", act="hidden_activation")), **caps, **scale}


@st.composite
def gemma3(draw):
    scaling = draw(one_of([{"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0}]))
    local = draw(one_of([scaling, {"rope_type": "default"}]))
    full, sliding = (draw(one_of([50.0, 10_000.0, 1e6])) for _ in range(2))
    kinds = {"full_attention": {**scaling, "rope_theta": full}, "sliding_attention": {**local, "rope_theta": sliding}}
    out = {k: v for k, v in draw(gemma2()).items() if k != "attn_logit_softcapping"}
    out |= {"max_position_embeddings": draw(one_of([4, 64])), "rope_parameters": kinds}
    by_interval = {k: v for k, v in out.items() if k != "layer_types"} | {"sliding_window_pattern": 2}
    return draw(one_of([out, by_interval]))


@st.composite
def qwen3_moe(draw):
    experts, out = draw(one_of([1, 2, 4, 5])), draw(llama(("attention_bias",), "all"))
    period, periods = draw(one_of([1, 2, 3])), draw(one_of([1, 2]))
    place = draw(one_of(range(period)))
    dense = {"mlp_only_layers": [i for i in range(period * periods) if i % period != place]}
    layers = draw(one_of([dense, {"decoder_sparse_step": period}])) if place == period - 1 else dense
    return {
        **out,
        "num_hidden_layers": period * periods,
        "use_sliding_window": draw(st.booleans()),
        "num_experts": experts,
        "num_experts_per_tok": draw(one_of([k for k in (1, 2, 3) if k <= experts])),
        "moe_intermediate_size": draw(one_of([8, 12])),
        "norm_topk_prob": draw(st.booleans()),
        "router_aux_loss_coef": draw(one_of([0.001, 0.02])),
        **layers,
    }


@st.composite
def smollm3(draw):
    out = draw(llama(("attention_bias", "mlp_bias"), "asked"))
    out.pop("max_window_layers", None)
    if not out["use_sliding_window"]:  # then stated types of layers count all the same
        kinds = [draw(one_of(["sliding_attention", "full_attention"])) for _ in range(out["num_hidden_layers"])]
        out |= draw(one_of([{}, {"layer_types": kinds}]))
    layers = [draw(one_of([0, 1])) for _ in range(out["num_hidden_layers"])]
    rotary = draw(
        one_of([{}, {"no_rope_layer_interval": 2}, {"no_rope_layers": layers}, {"no_rope_layers": [*layers, 0]}])
    )
    return {**out, **rotary, "pad_token_id": 0}


@st.composite
def phi3(draw):
    out = draw(llama((), "all"))
    fraction = draw(one_of([0.25, 0.5, 0.75, 1.0]))
    theta = out["rope_parameters"]["rope_theta"]
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": fraction}
    out |= {"rope_parameters": rope, "pad_token_id": 0}
    width = int(out["head_dim"] * fraction)
    if draw(st.booleans()) or width % 2 or out["head_dim"] * out["num_attention_heads"] != out["hidden_size"]:
        return out
    divisors = st.lists(one_of([1.0, 1.25, 4.0]), min_size=width // 2, max_size=width // 2)
    rope |= {"rope_type": "longrope", "short_factor": draw(divisors), "long_factor": draw(divisors)}
    rope |= draw(one_of([{}, {"attention_factor": 1.3}, {"factor": 2.0}]))
    return {**out, "original_max_position_embeddings": draw(one_of([4, 64]))}


@st.composite
def mixtral(draw):
    experts = draw(one_of([1, 2, 4, 5]))
    chosen = draw(one_of([k for k in (1, 2, 3) if k <= experts]))
    out = draw(llama((), "all"))
    return {**out, "num_local_experts": experts, "num_experts_per_tok": chosen, "router_aux_loss_coef": 0.02}


@st.composite
def neox(draw):
    s = draw(shape(widths=(4, 8, 12, 20)))
    positions = draw(rope())
    # An odd number of elements is rotated only where positions are not scaled: `transformers` then has
    # frequencies of one length and a ramp of another. Its "dynamic" divides by their number less 2.
    scaled = positions["rope_parameters"]["rope_type"] != "default"
    fractions = [f for f in (0.25, 0.5, 1.0) if not scaled or (s["head"] * f % 2 == 0 and s["head"] * f > 2)]
    positions["rope_parameters"]["partial_rotary_factor"] = draw(one_of(fractions))
    return {
        "vocab_size": s["vocab"],
        **sizes(s),
        "layer_norm_eps": draw(one_of([1e-5, 1e-2])),
        "hidden_act": draw(one_of(PLAIN)),
        "use_parallel_residual": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        **positions,
    }


@st.composite
def gpt(draw, kind):
    s = draw(shape(widths=(3, 4, 10)))
    out = {"vocab_size": s["vocab"], "n_positions": 16, "n_embd": s["heads"] * s["head"], "n_layer": s["depth"]}
    out |= {"n_head": s["heads"], "layer_norm_epsilon": draw(one_of([1e-5, 1e-2]))}
    if kind == "openai-gpt":
        return {
            **out,
            "afn": draw(one_of(["gelu", "relu", "silu", "swish"])),
            "tie_word_embeddings": draw(st.booleans()),
        }
    out |= {"n_inner": draw(one_of([None, s["inner"]])), "activation_function": draw(one_of(PLAIN))}
    out |= {key: draw(st.booleans()) for key in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")}
    out["reorder_and_upcast_attn"] = draw(st.booleans())  # in float32 it changes nothing
    return out if kind == "imagegpt" else {**out, "tie_word_embeddings": draw(st.booleans())}


@st.composite
def opt(draw):
    s = draw(shape(widths=(3, 4, 10)))
    return {
        "vocab_size": s["vocab"],
        "hidden_size": s["heads"] * s["head"],
        "ffn_dim": s["inner"],
        "num_hidden_layers": s["depth"],
        "num_attention_heads": s["heads"],
        "max_position_embeddings": 16,
        "activation_function": draw(one_of(PLAIN)),
        "do_layer_norm_before": draw(st.booleans()),
        "word_embed_proj_dim": draw(one_of([None, 5])),
        "enable_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def bert(draw, kind="bert"):
    s = draw(shape(widths=(3, 4, 10)))
    out = {
        "vocab_size": s["vocab"],
        **sizes(s),
        "max_position_embeddings": 20,
        "type_vocab_size": draw(one_of([1, 2, 3])),
        "hidden_act": draw(one_of(PLAIN)),
        "layer_norm_eps": draw(one_of([1e-12, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if kind == "roberta":
        out["pad_token_id"] = draw(one_of([0, 1, 3]))
    if kind in ("albert", "electra"):
        out["embedding_size"] = draw(one_of([5, 8, out["hidden_size"]]))
    if kind == "albert":
        groups = draw(one_of([1, 2]))
        out |= {"num_hidden_groups": groups, "num_hidden_layers": groups * s["depth"]}
        out |= {"inner_group_num": draw(one_of([1, 2]))}
    return out


@st.composite
def distilbert(draw):
    s = draw(shape(widths=(3, 4, 10)))
    return {
        "vocab_size": s["vocab"],
        "dim": s["heads"] * s["head"],
        "hidden_dim": s["inner"],
        "n_layers": s["depth"],
        "n_heads": s["heads"],
        "max_position_embeddings": 16,
        "sinusoidal_pos_embds": False,
        "activation": draw(one_of(["gelu", "relu"])),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def modernbert(draw, causal=False):
    s = draw(shape(depth=(1, 2, 4)))
    full, local = (draw(one_of([50.0, 10_000.0, 160_000.0])) for _ in range(2))
    scaling = draw(one_of([{"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0}]))
    kinds = [draw(one_of(["sliding_attention", "full_attention"])) for _ in range(s["depth"])]
    biases = ("attention_bias", "mlp_bias", "norm_bias", "decoder_bias", "classifier_bias")
    return {
        "vocab_size": s["vocab"],
        **sizes(s),
        "max_position_embeddings": 16,
        "local_attention": draw(one_of([2, 4, 6, 128])),
        "hidden_activation": draw(one_of(GATES)),
        "classifier_activation": draw(one_of(PLAIN)),
        "norm_eps": draw(one_of([1e-5, 1e-2])),
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": full},
            "sliding_attention": {**scaling, "rope_theta": local},
        },
        **draw(one_of([{}, {"layer_types": kinds}])),
        **{key: draw(st.booleans()) for key in biases},
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
        **({"bos_token_id": 0} if causal else {}),
    }


@st.composite
def xlnet(draw):
    s = draw(shape())
    return {
        "vocab_size": s["vocab"],
        "d_model": s["heads"] * s["head"],
        "n_layer": s["depth"],
        "n_head": s["heads"],
        "d_inner": s["inner"],
        "ff_activation": draw(one_of(PLAIN)),
        "layer_norm_eps": draw(one_of([1e-12, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def t5(draw, switch=False):
    s = draw(shape(widths=(3, 4, 10)))
    out = {
        "vocab_size": s["vocab"],
        "d_model": draw(one_of([6, 12, 20])),
        "d_kv": s["head"],
        "d_ff": s["inner"],
        "num_layers": s["depth"],
        "num_decoder_layers": draw(one_of([None, 1, 3])),
        "num_heads": s["heads"],
        "relative_attention_num_buckets": draw(one_of([4, 8, 32])),
        "relative_attention_max_distance": draw(one_of([6, 9, 128])),
        "layer_norm_epsilon": draw(one_of([1e-6, 1e-2])),
        "decoder_start_token_id": draw(one_of([0, 3])),
    }
    if not switch:
        act = draw(one_of(["relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-silu", "gated-relu"]))
        return {**out, "feed_forward_proj": act}
    step, periods = draw(one_of([1, 2, 3])), draw(one_of([1, 2]))
    out |= {"num_layers": step * periods, "num_sparse_encoder_layers": periods}
    periods = draw(one_of([1, 2]))
    out |= {"num_decoder_layers": step * periods, "num_sparse_decoder_layers": periods}
    out |= {"num_experts": draw(one_of([1, 2, 5])), "expert_capacity": draw(one_of([1, 2, 64]))}
    out |= {"router_bias": draw(st.booleans()), "router_z_loss_coef": 0.03}
    return {**out, "dense_act_fn": draw(one_of(["relu", "gelu", "gelu_new"]))}


@st.composite
def bart(draw, even=False):
    s, heads = draw(shape(widths=(6, 12))), draw(one_of([1, 2, 3]))
    return {
        "vocab_size": s["vocab"],
        "d_model": 12,
        "encoder_layers": s["depth"],
        "decoder_layers": draw(one_of([1, 2])),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": draw(one_of([1, 2, 4])),
        "encoder_ffn_dim": s["inner"],
        "decoder_ffn_dim": draw(one_of([8, 20])),
        "max_position_embeddings": 16,
        "activation_function": draw(one_of(PLAIN)),
        "scale_embedding": draw(st.booleans()),
        "decoder_start_token_id": draw(one_of([0, 2])),
    }


@st.composite
def deberta(draw):
    s = draw(shape(widths=(3, 4, 10)))
    relative = draw(st.booleans())
    out = {
        "vocab_size": s["vocab"],
        **sizes(s),
        "max_position_embeddings": 20,
        "type_vocab_size": draw(one_of([0, 2])),
        "hidden_act": draw(one_of(PLAIN)),
        "layer_norm_eps": draw(one_of([1e-7, 1e-2])),
        **draw(one_of([{}, {"embedding_size": 5}])),
        "position_biased_input": not relative or draw(st.booleans()),
        "relative_attention": relative,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    if relative:
        furthest = draw(one_of([-1, 5]))
        out |= {
            "pos_att_type": draw(one_of([["c2p"], ["p2c"], ["p2c", "c2p"]])),
            "max_relative_positions": furthest,
            "position_buckets": draw(one_of([-1, 4, 8] if furthest < 0 else [-1, 4])),  # 8 end at 4 already
            "share_att_key": draw(st.booleans()),
            "norm_rel_ebd": draw(one_of(["none", "layer_norm"])),
        }
    convolved = {"conv_kernel_size": 3, "conv_act": draw(one_of(["tanh", "gelu"]))}
    return out | (convolved if draw(st.booleans()) else {})


@st.composite
def esm(draw):
    s = draw(shape(widths=(4, 6, 10)))
    return {
        "vocab_size": s["vocab"],
        **sizes(s),
        "max_position_embeddings": 20,
        "position_embedding_type": "rotary",
        "layer_norm_eps": draw(one_of([1e-12, 1e-2])),
        "emb_layer_norm_before": draw(st.booleans()),
        "token_dropout": draw(st.booleans()),
        "pad_token_id": 0,
        "mask_token_id": 1,
    }


# ---- images and sounds


@st.composite
def tower(draw, widths=(4, 8), square=False):
    """The keys that most configurations of image encoders share."""
    s = draw(shape(widths=widths))
    patch = draw(one_of([2, 3, 4]))
    rows, columns = draw(one_of([2, 3])), draw(one_of([2, 3]))
    return {
        **sizes(s),
        "hidden_act": draw(one_of(PLAIN)),
        "layer_norm_eps": draw(one_of([1e-12, 1e-5, 1e-2])),
        "image_size": rows * patch if square or rows == columns else [rows * patch, columns * patch],
        "patch_size": patch,
        "num_channels": draw(one_of([1, 3])),
    }


@st.composite
def vit(draw, square=False):
    out = {**draw(tower(square=square)), "qkv_bias": draw(st.booleans()), "num_labels": draw(one_of([2, 5]))}
    return {**out, "pooler_act": draw(one_of(["tanh", "gelu"]))}


@st.composite
def beit(draw):
    biased = draw(one_of(["none", "own", "shared"]))
    return {
        **draw(tower(square=True)),  # `transformers` takes rows for columns
        "vocab_size": 31,
        "num_labels": draw(one_of([2, 5])),
        "use_mask_token": True,
        "use_absolute_position_embeddings": draw(st.booleans()),
        "use_relative_position_bias": biased == "own",
        "use_shared_relative_position_bias": biased == "shared",
        "layer_scale_init_value": draw(one_of([0.0, 0.1])),
        "use_mean_pooling": True,
    }


@st.composite
def dinov2(draw, registers=False):
    out = {k: v for k, v in draw(vit(square=True)).items() if k != "intermediate_size"}  # it stretches squares only
    out |= {"mlp_ratio": draw(one_of([2, 4])), "use_swiglu_ffn": draw(st.booleans())}
    out |= {"layerscale_value": draw(one_of([1.0, 0.3]))}
    return out | ({"num_register_tokens": draw(one_of([1, 4]))} if registers else {})


@st.composite
def dinov3(draw):
    out = draw(tower(square=True))
    out |= {name: draw(st.booleans()) for name in ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias")}
    out |= {"use_gated_mlp": draw(st.booleans()), "hidden_act": draw(one_of(GATES))}
    return {**out, "num_register_tokens": draw(one_of([0, 3])), "layerscale_value": draw(one_of([1.0, 0.3]))}


@st.composite
def ast(draw):
    out = {k: v for k, v in draw(vit()).items() if k not in ("image_size", "num_channels")}
    strides = {"frequency_stride": draw(one_of([1, 2, 3])), "time_stride": draw(one_of([1, 3]))}
    return {**out, **strides, "num_mel_bins": draw(one_of([7, 8])), "max_length": draw(one_of([9, 14]))}


@st.composite
def vit_mae(draw):
    s = draw(shape(widths=(4, 8)))
    return {
        **draw(tower(square=True)),
        **{f"decoder_{key}": value for key, value in sizes(s).items()},
        "qkv_bias": draw(st.booleans()),
        "norm_pix_loss": False,  # of the objective, as the ratio of hidden patches: an export has their defaults
    }


@st.composite
def text_tower(draw, **more):
    s = draw(shape(widths=(4, 8)))
    return {
        "vocab_size": s["vocab"],
        **sizes(s),
        "max_position_embeddings": 16,
        "hidden_act": draw(one_of(PLAIN)),
        "layer_norm_eps": draw(one_of([1e-5, 1e-2])),
        "eos_token_id": draw(one_of([2, s["vocab"] - 1])),
        "pad_token_id": 1,
        "bos_token_id": 0,
        **{key: draw(value) for key, value in more.items()},
    }


@st.composite
def image_tower(draw, **more):
    return {**draw(tower(square=True)), **{key: draw(value) for key, value in more.items()}}


@st.composite
def pair(draw, kind):
    image, text = draw(tower(square=True)), draw(text_tower())
    if kind == "siglip":
        return {"vision_config": image, "text_config": {**text, "projection_size": image["hidden_size"]}}
    return {"vision_config": image, "text_config": text, "projection_dim": draw(one_of([5, 12]))}


@st.composite
def llava(draw):
    kind, siglip = draw(one_of(["llama", "llama", "qwen3", "gemma"])), draw(st.booleans())
    image = {**draw(tower(square=True)), "model_type": "siglip_vision_model" if siglip else "clip_vision_model"}
    image |= {"vision_use_head": draw(st.booleans())} if siglip else {}
    text = {**draw(llama()), "model_type": kind, "tie_word_embeddings": False}
    last = -1 - image["num_hidden_layers"]
    chosen = "full" if siglip else draw(one_of(["default", "full"]))
    return {
        "vision_config": image,
        "text_config": text,
        "image_token_index": text["vocab_size"] - 1,
        "vision_feature_layer": draw(one_of([-1, -2, 0, [-1], [-2, -1, last]])),
        "vision_feature_select_strategy": chosen,
        "multimodal_projector_bias": draw(st.booleans()),
        "projector_hidden_act": draw(one_of(["gelu", "relu"])),
        "image_seq_length": (image["image_size"] // image["patch_size"]) ** 2 + (chosen == "full" and not siglip),
        "tie_word_embeddings": False,
    }


PROJECTED = {"projection_dim": one_of([5, 12])}
CASES = {
    "openai-gpt": Case(("OpenAIGPTLMHeadModel", "OpenAIGPTModel"), gpt("openai-gpt")),
    "gpt2": Case(("GPT2LMHeadModel", "GPT2Model"), gpt("gpt2")),
    "imagegpt": Case(("ImageGPTForCausalImageModeling", "ImageGPTModel"), gpt("imagegpt")),
    "opt": Case(("OPTForCausalLM", "OPTModel"), opt()),
    "gpt_neox": Case(("GPTNeoXForCausalLM", "GPTNeoXModel"), neox()),
    "llama": Case(("LlamaForCausalLM", "LlamaModel"), llama(("attention_bias", "mlp_bias"))),
    "mistral": Case(("MistralForCausalLM", "MistralModel"), llama((), "all")),
    "qwen2": Case(("Qwen2ForCausalLM", "Qwen2Model"), llama((), "asked", head_dim=False)),
    "qwen3": Case(("Qwen3ForCausalLM", "Qwen3Model"), llama(("attention_bias",), "asked")),
    "gemma": Case(("GemmaForCausalLM", "GemmaModel"), llama(("attention_bias",))),
    "gemma2": Case(("Gemma2ForCausalLM", "Gemma2Model"), gemma2()),
    "gemma3_text": Case(("Gemma3ForCausalLM", "Gemma3TextModel"), gemma3()),
    "qwen3_moe": Case(("Qwen3MoeForCausalLM", "Qwen3MoeModel"), qwen3_moe()),
    "olmo2": Case(
        ("Olmo2ForCausalLM", "Olmo2Model"), llama(("attention_bias",)).map(lambda s: {**s, "pad_token_id": 0})
    ),
    "smollm3": Case(("SmolLM3ForCausalLM", "SmolLM3Model"), smollm3()),
    "phi3": Case(("Phi3ForCausalLM", "Phi3Model"), phi3()),
    "mixtral": Case(("MixtralForCausalLM", "MixtralModel"), mixtral()),
    "t5": Case(("T5ForConditionalGeneration", "T5Model", "T5EncoderModel"), t5()),
    "mt5": Case(("MT5ForConditionalGeneration", "MT5Model", "MT5EncoderModel"), t5()),
    "switch_transformers": Case(
        ("SwitchTransformersForConditionalGeneration", "SwitchTransformersModel"), t5(switch=True)
    ),
    "bart": Case(("BartForConditionalGeneration", "BartModel"), bart()),
    "pegasus": Case(("PegasusForConditionalGeneration", "PegasusModel"), bart()),
    "bert": Case(("BertForPreTraining", "BertForMaskedLM", "BertModel"), bert()),
    "roberta": Case(("RobertaForMaskedLM", "RobertaModel"), bert("roberta")),
    "xlm-roberta": Case(("XLMRobertaForMaskedLM", "XLMRobertaModel"), bert("roberta")),
    "camembert": Case(("CamembertForMaskedLM", "CamembertModel"), bert("roberta")),
    "distilbert": Case(("DistilBertForMaskedLM", "DistilBertModel"), distilbert()),
    "albert": Case(("AlbertForPreTraining", "AlbertForMaskedLM", "AlbertModel"), bert("albert")),
    "electra": Case(("ElectraForPreTraining", "ElectraForMaskedLM", "ElectraModel"), bert("electra")),
    "modernbert": Case(("ModernBertForMaskedLM", "ModernBertModel"), modernbert()),
    "modernbert-decoder": Case(("ModernBertDecoderForCausalLM", "ModernBertDecoderModel"), modernbert(causal=True)),
    "xlnet": Case(("XLNetLMHeadModel", "XLNetModel"), xlnet()),
    "deberta-v2": Case(("DebertaV2ForMaskedLM", "DebertaV2Model"), deberta()),
    "esm": Case(("EsmForMaskedLM",), esm()),
    "vit": Case(("ViTForImageClassification", "ViTModel"), vit()),
    "deit": Case(("DeiTForImageClassification", "DeiTModel", "DeiTForImageClassificationWithTeacher"), vit()),
    "ijepa": Case(("IJepaForImageClassification", "IJepaModel"), vit()),
    "beit": Case(("BeitForImageClassification", "BeitModel", "BeitForMaskedImageModeling"), beit()),
    "dinov2": Case(("Dinov2ForImageClassification", "Dinov2Model"), dinov2()),
    "dinov2_with_registers": Case(
        ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"), dinov2(registers=True)
    ),
    "dinov3_vit": Case(("DINOv3ViTModel",), dinov3()),
    "audio-spectrogram-transformer": Case(("ASTForAudioClassification", "ASTModel"), ast()),
    "vit_mae": Case(("ViTMAEForPreTraining",), vit_mae()),
    "clip": Case(("CLIPModel",), pair("clip")),
    "siglip": Case(("SiglipModel",), pair("siglip")),
    "clip_vision_model": Case(("CLIPVisionModelWithProjection", "CLIPVisionModel"), image_tower(**PROJECTED)),
    "clip_text_model": Case(("CLIPTextModelWithProjection", "CLIPTextModel"), text_tower(**PROJECTED)),
    "siglip_vision_model": Case(("SiglipVisionModel",), image_tower(vision_use_head=st.booleans())),
    "siglip_text_model": Case(("SiglipTextModel",), text_tower(projection_size=one_of([5, None]))),
    "llava": Case(("LlavaForConditionalGeneration",), llava()),
}
