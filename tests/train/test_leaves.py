"""Roles and heights of the parameters of every family and objective, and their effects on optimisers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily
from test_families import natural

from ssljax import models, objectives
from ssljax.layers.dense import parameter
from ssljax.train import optimizers
from ssljax.train.leaves import path_of
from ssljax.train.state import abstract_variables, make_variables

DECAY = 0.5
BLOCK = {"preset": None, "width": 16, "depth": 4, "heads": 2}
IMAGE = {**BLOCK, "patch_size": 4}
EXPERTS = {"count": 4, "every": 2}


def variables_of(objective, name=None, **keys):
    """(axes, shapes) of the parameters of a small objective; `name` of the family."""
    made = tiny.make(objective, **({"name": name, **keys} if name else keys))
    shapes, axes = abstract_variables(make_variables(made, tiny.batch()))
    return axes.params, shapes.params


def bound_leaves(variables, optimizer=None):
    return (optimizer or optimizers.AdamW(layer_decay=DECAY)).bind(*variables).leaves


def rates(variables):
    """{path: factor of the learning rate, a list over the layers of a scanned leaf}."""
    return {path: np.ravel(leaf.lr).tolist() for path, leaf in bound_leaves(variables).items()}


def decayed(variables):
    return {path for path, leaf in bound_leaves(variables).items() if leaf.wd}


def orthogonalised(variables):
    """The leaves for which Muon keeps the state of its matrices."""
    bound = optimizers.Muon().bind(*variables)
    state = jax.eval_shape(bound.init, variables[1])
    found = jax.tree_util.tree_leaves_with_path(state[0].inner_states["matrix"])
    names = {path_of(keys) for keys, _ in found}
    return {path for path in bound.leaves if any(name.endswith(path) for name in names)}


def trusted(variables):
    """Leaves that LAMB scales by a trust ratio: ten times the parameter gives ten times the update."""
    bound = optimizers.LAMB(weight_decay=0.0).bind(*variables)
    params, grads = (jax.tree.map(lambda s, v=v: jnp.full(s.shape, v), variables[1]) for v in (10.0, 1.0))
    updates, _ = bound.update(grads, bound.init(params), params, 1.0, 0)
    flat = jax.tree_util.tree_leaves_with_path(updates)
    return {path_of(keys) for keys, update in flat if np.abs(update).max() > 5}


# -- heights: decay 0.5, so the factor of a parameter under h blocks is 0.5 ** h ------------------------------------


def test_a_period_counts_blocks():
    """Two scanned units of a dense block and one with experts are four blocks."""
    found = rates(variables_of("causal_lm", "mixtral", **BLOCK, experts=EXPERTS))
    layers = "encoder/stack/layers"
    assert found[f"{layers}/block_0/mlp/in/kernel"] == [0.0625, 0.25]
    assert found[f"{layers}/block_0/attention/q/kernel"] == [0.0625, 0.25]
    assert found[f"{layers}/block_1/mlp/in"] == found[f"{layers}/block_1/mlp/router"] == [0.125, 0.5]
    assert found["encoder/embed/embedding"] == [DECAY**5]
    assert found["encoder/stack/norm/scale"] == found["encoder/head_kernel"] == [1.0]


def test_every_block_of_a_longer_period_counts():
    """Six blocks of which every third has experts; one rate for all of them is what counting periods would give."""
    found = rates(variables_of("causal_lm", "mixtral", **{**BLOCK, "depth": 6}, experts={"count": 4, "every": 3}))
    layers = "encoder/stack/layers"
    assert found[f"{layers}/block_0/mlp/in/kernel"] == [DECAY**6, DECAY**3]
    assert found[f"{layers}/block_1/attention/q/kernel"] == [DECAY**5, DECAY**2]
    assert found[f"{layers}/block_2/mlp/in"] == found[f"{layers}/block_2/mlp/router"] == [DECAY**4, DECAY]
    assert found["encoder/embed/embedding"] == [DECAY**7]


def test_scanned_and_unrolled_blocks_have_equal_heights():
    for experts in ({"count": 4, "every": 2}, {"count": 4, "every": 4, "place": 1}):
        scanned, unrolled = (
            rates(variables_of("causal_lm", "mixtral", **BLOCK, experts=experts, scan=scan)) for scan in (True, False)
        )
        assert scanned == unrolled


def test_experts_in_towers_and_decoders_count_their_blocks():
    """A period of two blocks in the towers of CLIP and LLaVA and in the decoder of a masked autoencoder."""
    towers = {"image": {**IMAGE, "experts": EXPERTS}, "text": {**BLOCK, "experts": EXPERTS}}
    found = rates(variables_of("clip", "clip", embed_dim=16, **towers))
    for tower in ("image_tower", "text_tower"):
        assert found[f"{tower}/stack/layers/block_0/mlp/in/kernel"] == [0.0625, 0.25], tower
        assert found[f"{tower}/stack/layers/block_1/mlp/in"] == [0.125, 0.5], tower
    text = {"name": "llama", **BLOCK, "experts": EXPERTS}
    found = rates(variables_of("captioning", image={**IMAGE, "experts": EXPERTS}, text=text))
    assert found["vision/stack/layers/block_1/mlp/router"] == [0.125, 0.5]
    assert found["language/stack/layers/block_0/attention/q/kernel"] == [0.0625, 0.25]
    decoder = {"preset": None, "width": 16, "depth": 2, "heads": 2, "experts": EXPERTS}
    made = objectives.create(
        {"objective": {"name": "mae", "decoder": decoder}, "model": {"name": "vit", **IMAGE, "positions": "sincos"}},
        tiny.SPEC,
        tiny.STEPS,
    )
    shapes, axes = abstract_variables(make_variables(made, tiny.batch()))
    found = rates((axes.params, shapes.params))
    assert found["decoder/stack/layers/block_0/mlp/in/kernel"] == [0.25]
    assert found["decoder/stack/layers/block_1/mlp/in"] == [0.5]


def test_a_repeated_block_counts_once():
    found = rates(variables_of("mlm", "albert", **BLOCK, repeats=3, embedding_dim=8))
    assert found["encoder/stack/layers/block/mlp/in/kernel"] == [0.0625, 0.125, 0.25, 0.5]
    for name in ("embed/embedding", "position_embed/embedding", "embed_norm/scale", "embed_project/kernel"):
        assert found[f"encoder/{name}"] == [DECAY**5], name
    assert found["encoder/head_dense/kernel"] == found["encoder/head_bias"] == [1.0]


def test_encoder_and_decoder_count_their_own_blocks():
    keys = {**BLOCK, "depth": 2, "decoder_depth": 4, "vocab_size": 80}
    found = rates(variables_of("span_corruption", "switch", **keys, experts=EXPERTS))
    assert found["encoder/encoder/stack/layers/block_0/mlp/in/kernel"] == [0.25]
    assert found["encoder/encoder/stack/layers/block_1/mlp/in"] == [0.5]
    assert found["encoder/decoder/stack/layers/block_0/cross/q/kernel"] == [0.0625, 0.25]
    assert found["encoder/decoder/stack/layers/block_1/mlp/in"] == [0.125, 0.5]
    assert found["encoder/embed/embedding"] == [DECAY**5]  # below the deeper stack
    assert found["encoder/encoder/stack/norm/scale"] == found["encoder/decoder/stack/relative_bias"] == [1.0]
    plain = rates(variables_of("span_corruption", "bart", **keys))
    assert plain["encoder/encoder/position_embed/embedding"] == [DECAY**3]
    assert plain["encoder/decoder/position_embed/embedding"] == [DECAY**5]


def test_two_towers_count_their_own_blocks():
    image = {**IMAGE, "depth": 2, "pool": "map", "registers": 1}
    text = {**BLOCK, "depth": 3}
    found = rates(variables_of("clip", "clip", embed_dim=16, image=image, text=text))
    assert found["image_tower/stack/layers/mlp/in/kernel"] == [0.25, 0.5]
    assert found["text_tower/stack/layers/mlp/in/kernel"] == [0.125, 0.25, 0.5]
    for name in ("patch/kernel", "embed_norm/scale", "positions", "registers"):
        assert found[f"image_tower/{name}"] == [DECAY**3], name
    assert found["text_tower/embed/embedding"] == found["text_tower/position_embed/embedding"] == [DECAY**4]
    for name in ("image_tower/attention_pool/query", "image_tower/attention_pool/attention/q/kernel", "log_scale"):
        assert found[name] == [1.0], name
    assert found["image_projection/kernel"] == found["text_tower/stack/norm/scale"] == [1.0]


def test_an_image_decoder_and_its_tower_count_their_own_blocks():
    found = rates(variables_of("captioning", image={**IMAGE, "depth": 2}, text={"name": "llama", **BLOCK}))
    assert found["vision/stack/layers/mlp/in/kernel"] == [0.25, 0.5]
    assert found["language/stack/layers/mlp/in/kernel"] == [0.0625, 0.125, 0.25, 0.5]
    assert found["vision/class_token"] == [DECAY**3] and found["language/embed/embedding"] == [DECAY**5]
    assert found["project_in/kernel"] == found["language/head_kernel"] == [1.0]  # the projector is a head of the tower


def test_the_decoder_of_a_masked_autoencoder_counts_its_own_blocks():
    found = rates(variables_of("mae", "vit", **IMAGE, positions="sincos"))
    assert found["encoder/stack/layers/mlp/in/kernel"] == [0.0625, 0.125, 0.25, 0.5]
    assert found["encoder/class_token"] == found["encoder/patch/kernel"] == [DECAY**5]
    assert found["decoder/stack/layers/mlp/in/kernel"] == [0.5]
    assert found["decoder/embed/kernel"] == found["decoder/mask_token"] == [0.25]
    assert found["decoder/head/kernel"] == found["decoder/stack/norm/scale"] == [1.0]


def test_a_residual_network_counts_the_blocks_of_all_stages():
    keys = {"preset": None, "channels": 8, "depths": [1, 2], "groups": 4, "stem": "small"}
    found = rates(variables_of("simclr", "resnet", **keys))
    assert found["encoder/stem/kernel"] == found["encoder/norm/scale"] == [0.0625]
    assert found["encoder/block_0/conv_0/kernel"] == [0.125]
    assert found["encoder/block_1/shortcut/kernel"] == found["encoder/block_1/norm_0/scale"] == [0.25]
    assert found["encoder/block_2/conv_1/kernel"] == [0.5]
    assert found["projector/linear_0/kernel"] == [1.0]


def test_heights_of_parameters_between_and_across_blocks():
    found = rates(variables_of("mlm", "deberta", **BLOCK, convolution={"size": 3}))
    assert found["encoder/stack/convolution/conv/kernel"] == found["encoder/stack/convolution/scale"] == [DECAY**4]
    assert found["encoder/stack/distances"] == [1.0]  # read by every block
    found = rates(variables_of("mlm", "xlnet", **BLOCK))
    assert found["encoder/query"] == [DECAY**5]
    assert found["encoder/stack/layers/attention/relative/content_bias"] == [0.0625, 0.125, 0.25, 0.5]


# -- roles ---------------------------------------------------------------------------------------------------------


def role_sets(*arguments, **keys):
    variables = variables_of(*arguments, **keys)
    return decayed(variables), orthogonalised(variables), trusted(variables), set(bound_leaves(variables))


def test_vectors_of_relative_attention_are_not_matrices():
    decay, matrices, _, every = role_sets("mlm", "xlnet", **BLOCK)
    relative = "encoder/stack/layers/attention/relative"
    vectors = {f"{relative}/{name}" for name in ("content_bias", "distance_bias", "segment_bias", "segments")}
    assert vectors <= every and not vectors & (decay | matrices)
    assert f"{relative}/distance/kernel" in decay & matrices
    assert "encoder/query" not in decay


@pytest.mark.parametrize(
    "arguments",
    [("span_corruption", {"name": "t5", "vocab_size": 80}), ("classification", {"name": "beit", "patch_size": 4})],
    ids=["t5", "beit"],
)
def test_tables_of_distances_do_not_decay(arguments):
    objective, keys = arguments
    decay, matrices, trust, every = role_sets(objective, **BLOCK, **keys)
    tables = {path for path in every if path.endswith("relative_bias")}
    assert tables and tables <= trust and not tables & (decay | matrices)


def test_roles_in_a_vision_transformer():
    keys = {**IMAGE, "pool": "map", "registers": 2, "mask_token": True, "layer_scale": 0.1, "talking_heads": True}
    decay, matrices, trust, every = role_sets("dino", "vit", **keys)
    encoder, layers = "encoder", "encoder/stack/layers"
    maps = {f"{layers}/attention/{name}/kernel" for name in ("q", "k", "v", "out")}
    maps |= {f"{layers}/mlp/{name}/kernel" for name in ("in", "out")}
    pool = f"{encoder}/attention_pool"
    maps |= {f"{part}/attention/{name}" for part in (layers, pool) for name in ("mix_logits", "mix_weights")}
    maps |= {f"{pool}/attention/{name}/kernel" for name in ("q", "k", "v", "out")}
    maps |= {f"{pool}/mlp/{name}/kernel" for name in ("in", "out")}
    maps |= {f"head/linear_{i}/kernel" for i in range(3)}
    assert matrices == maps
    assert decay == maps | {"encoder/patch/kernel", "head/last_layer/kernel"}
    assert trust == decay | {"encoder/positions"}
    tokens = {"encoder/registers", "encoder/mask_token", "encoder/attention_pool/query"}
    assert tokens | {f"{layers}/mlp_scale"} <= every - trust


def test_roles_in_an_encoder_of_tokens():
    decay, matrices, _, _ = role_sets("mlm", "bert", **BLOCK, token_types=2, tied=False, extras=("pooler", "pair"))
    tables = {"encoder/embed/embedding", "encoder/type_embed/embedding"}
    heads = {"encoder/head_kernel", "encoder/pair/kernel"}
    assert decay == tables | heads | matrices
    assert {"encoder/head_dense/kernel", "encoder/stack/layers/mlp/in/kernel"} <= matrices
    assert not matrices & {"encoder/pair/kernel", "encoder/position_embed/embedding"}


@pytest.mark.parametrize("objective", daily(["simclr", "swav", "mae", "classification", "dino"], 2))
def test_roles_of_heads_projectors_prototypes_and_decoders(objective):
    decay, matrices, _, every = role_sets(objective)
    last = {"swav": "prototypes/kernel", "mae": "decoder/head/kernel", "dino": "head/last_layer/kernel"}
    last |= {"classification": "head/linear/kernel"}
    if objective in last:
        assert last[objective] in decay - matrices
    if objective in ("simclr", "swav"):
        assert {"projector/linear_0/kernel", "projector/linear_1/kernel"} <= matrices
        assert "projector/norm_0/scale" in every - decay
    if objective == "mae":
        assert "decoder/mask_token" in every - decay and "decoder/embed/kernel" in matrices


def declared(variables):
    from ssljax.layers.roles import ParameterAxes

    leaves = jax.tree_util.tree_leaves_with_path(variables[0], is_leaf=lambda x: isinstance(x, tuple))
    return {path_of(keys): isinstance(axes, ParameterAxes) for keys, axes in leaves}


@pytest.mark.parametrize("name", [name for name in models.REGISTRY if name != "ast"])
def test_every_parameter_of_every_family_declares_a_role(name):
    objective, keys = natural(name)
    variables = variables_of(objective, **keys)
    assert all(declared(variables).values()), declared(variables)
    leaves = bound_leaves(variables)
    for path, leaf in leaves.items():
        rank = len(leaf.shape) - leaf.stacked
        assert (leaf.role in ("bias", "norm", "scale")) <= (rank <= 1), path
        assert (leaf.role in ("matrix", "head", "embedding")) <= (rank >= 2), path
        if leaf.axes[:1] == ("layers",):
            assert isinstance(leaf.height, tuple) and len(leaf.height) == leaf.shape[0], path
            assert min(leaf.height) >= 1, path
    assert any(leaf.role == "matrix" for leaf in leaves.values()) or name == "word_vectors"  # two tables


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_every_parameter_of_every_objective_declares_a_role(name):
    assert all(declared(variables_of(name)).values())


def test_roles_in_a_spectrogram_transformer():
    model = models.REGISTRY.get("ast")(**IMAGE, strides=(3, 3), image_shape=(16, 24, 1)).standalone()
    boxed = jax.eval_shape(model.initial, jax.random.key(0))["params"]
    from ssljax.layers.roles import declarations

    axes = declarations(boxed)
    assert axes["patch"]["kernel"].role == "embedding" and axes["patch"]["kernel"].height == 5
    assert axes["distillation_token"].role == "token" and axes["distillation_token"].height == 5


def test_a_parameter_without_a_declaration_has_the_default():
    """A plain array of a user's objective, or a plain flax module."""
    shapes = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4), "scale": jnp.zeros(())}
    bound = optimizers.Muon(weight_decay=0.1).bind({"kernel": (), "bias": None, "scale": ("embed",)[:0]}, shapes)
    assert {name: leaf.role for name, leaf in bound.leaves.items()} == {
        "kernel": "matrix",
        "bias": "bias",
        "scale": "bias",
    }
    assert {leaf.height for leaf in bound.leaves.values()} == {0}


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_tied_to_the_head_stays_an_embedding(tied):
    leaves = bound_leaves(variables_of("causal_lm", "llama", **BLOCK, tied=tied))
    table = leaves["encoder/embed/embedding"]
    assert (table.role, table.lr, table.wd) == ("embedding", DECAY**5, 1.0)
    assert ("encoder/head_kernel" in leaves) != tied


def test_learned_scales_and_single_vectors_are_neither_decayed_nor_orthogonalised():
    """Temperatures, LayerScale, register tokens, and the biases of logits."""
    image = {**IMAGE, "registers": 1, "mask_token": True, "layer_scale": 0.1}
    variables = variables_of("clip", "siglip", image=image, text=BLOCK)
    decay, matrices, trust = decayed(variables), orthogonalised(variables), trusted(variables)
    layers = "image_tower/stack/layers"
    names = {"log_scale", "logit_bias", "image_tower/registers", f"{layers}/mlp_scale", f"{layers}/attention_scale"}
    assert names <= set(bound_leaves(variables))
    assert not names & (decay | matrices | trust)


def test_an_unknown_role_is_an_error():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self):
            return parameter(self, "kernel", nn.initializers.zeros, (None,), (3,), role="kernel")

    with pytest.raises(ValueError, match="kernel: got role 'kernel', must be one of matrix, head, embedding"):
        Wrong().init(jax.random.key(0))


def test_a_scan_over_no_blocks_does_not_change_heights():
    from ssljax.layers.roles import HEIGHTS, Declared

    box = Declared(jnp.zeros((2, 3)), ("embed", "mlp"), role="matrix", height=-1)
    assert box.add_axis(0, {"partition_name": "queue"}).height == -1
    scanned = box.add_axis(0, {"partition_name": "layers", HEIGHTS: (4, 2)})
    assert scanned.height == (3, 1) and scanned.names == ("layers", "embed", "mlp") and scanned.role == "matrix"
    back = scanned.remove_axis(0, {"partition_name": "layers", HEIGHTS: (4, 2)})
    assert dataclasses.astuple(back)[1:] == dataclasses.astuple(box)[1:]
