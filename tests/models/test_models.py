"""The families: what reaches what, padding and packing, shapes from the data, errors."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from daily import daily

from ssljax import models
from ssljax.base.errors import UserError
from ssljax.base.patches import patchify
from ssljax.layers.masks import Causal, Full
from ssljax.layers.noise import Noise
from ssljax.models.mae import MAEDecoder
from ssljax.models.tokens import TokenModel
from ssljax.models.vit import windows
from ssljax.parallel import MeshConfig, make_mesh, mesh_context
from ssljax.parallel.rules import RULES


@dataclasses.dataclass
class Spec:
    elements: dict
    vocab_size: int = 50


SPEC = Spec(
    {
        "image": {"shape": [8, 8, 3]},
        "tokens": {"shape": [12]},
        "spectrogram": {"shape": [24, 16]},
        "nodes": {"shape": [5, 4]},
    }
)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(4, 8, 8, 3)), jnp.float32)
SPECTROGRAMS = jnp.asarray(RNG.normal(size=(4, 24, 16)), jnp.float32)
GRAPHS = (
    jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 4)), jnp.float32),
    jnp.asarray(np.tile(np.eye(5, k=1) + np.eye(5, k=-1), (4, 1, 1)), bool),
    jnp.ones((4, 5), bool),
)
TOKENS = jnp.asarray(RNG.integers(1, 50, size=(4, 12)), jnp.int32)
SEGMENTS = jnp.array([[1] * 12, [1] * 7 + [0] * 5, [1] * 1 + [0] * 11, [1] * 12], jnp.int32)
SMALL = {"width": 16, "depth": 2, "heads": 2}
VIT = {"name": "vit", "patch_size": 2, **SMALL}
TEXT = {name: {"name": name, **SMALL} for name in ("bert", "gpt", "deberta")}
TEXT["deberta"] |= {"convolution": {"size": 3}, "disentangled": {"buckets": 4, "max_distance": 12}}
LLAMA = {
    **TEXT["gpt"],
    "norm": "rms",
    "activation": "swiglu",
    "rope_theta": 1e4,
    "positions": "none",
    "bias": False,
    "tied": False,
    "kv_heads": 1,
}
CLIP = {"name": "clip", "image": VIT | SMALL, "text": SMALL, "embed_dim": 8}
CLIP["image"] = {k: v for k, v in CLIP["image"].items() if k != "name"}


def vit(**keys):
    module = models.create({**VIT, **keys}, SPEC)
    return module, nn.unbox(jax.jit(module.init)(jax.random.key(0), IMAGES))


def text(name="gpt", **keys):
    module = models.create({**(LLAMA if name == "llama" else TEXT[name]), **keys}, SPEC)
    init = jax.jit(lambda key, tokens: module.init(key, tokens, mask=Full(), method="init_all"))
    return module, nn.unbox(init(jax.random.key(0), TOKENS))


@functools.cache
def jitted(module):
    return jax.jit(module.apply, static_argnames="method")


def apply(module, *arguments, **keywords):
    return jitted(module)(*arguments, **keywords)


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


class TestViT:
    def test_shapes(self):
        for keys in ({}, {"pool": "mean"}, {"registers": 3}, {"positions": "sincos", "pool": "mean", "registers": 1}):
            module, params = vit(**keys)
            out = apply(module, params, IMAGES)
            assert out.tokens.shape == (4, 16, 16) and out.pooled.shape == (4, 16) and module.width == 16
            if keys.get("pool") == "mean":
                close(out.pooled, out.tokens.mean(1))
            assert ("class_token" in params["params"]) == (keys.get("pool") != "mean")
            assert ("positions" in params["params"]) == (keys.get("positions") != "sincos")

    def test_tokens_before_the_patches(self):
        module, params = vit(name="deit", registers=2)
        out = apply(module, params, IMAGES)
        assert out.prefix.shape == (4, 4, 16) and module.config.prefix == 4
        close(out.pooled, out.prefix[:, :2].mean(1))  # class and distillation tokens
        # Class tokens have a position of their own, registers have none.
        assert params["params"]["positions"].shape == (2 + 16, 16)
        moved = jax.tree.map(lambda x: x, params)
        moved["params"]["positions"] = moved["params"]["positions"].at[0].add(1.0)
        moved["params"]["class_token"] = moved["params"]["class_token"] - 1.0
        close(apply(module, moved, IMAGES).pooled, out.pooled)

    def test_windows_that_touch_are_patches(self):
        np.testing.assert_array_equal(windows(IMAGES, 2, (2, 2)), patchify(IMAGES, 2))
        assert windows(IMAGES, 4, (1, 2)).shape == (4, 5 * 3, 48)
        np.testing.assert_array_equal(windows(IMAGES, 4, (1, 2))[:, 4], IMAGES[:, 1:5, 2:6].reshape(4, -1))

    def test_the_attention_pool_does_not_see_an_order(self):
        module, params = vit(pool="map", positions="none")
        order = jnp.asarray([RNG.permutation(16) for _ in range(4)], jnp.int32)
        out = apply(module, params, IMAGES)
        assert out.prefix is None and out.pooled.shape == (4, 16)
        close(jax.jit(lambda keep: apply(module, params, IMAGES, keep=keep))(order).pooled, out.pooled)

    @pytest.mark.parametrize("name", ["beit", "dinov2", "dinov3", "ijepa"])
    def test_families_read_other_sizes(self, name):
        module, params = vit(name=name)
        large = jnp.tile(IMAGES, (1, 2, 1, 1))
        assert apply(module, params, large).tokens.shape == (4, 32, 16)
        assert np.isfinite(apply(module, params, large).pooled).all()

    def test_a_dropped_patch_has_no_pair(self):
        module, params = vit(name="beit")
        with pytest.raises(UserError, match=r"model.position_bias: 'grid' needs every patch"):
            apply(module, params, IMAGES, keep=jnp.zeros((4, 3), jnp.int32))

    def test_keep_all_is_the_whole_image_in_any_order(self):
        module, params = vit()
        run = jax.jit(lambda keep: apply(module, params, IMAGES, keep=keep))
        order = jnp.asarray([RNG.permutation(16) for _ in range(4)], jnp.int32)
        whole, shuffled = apply(module, params, IMAGES), run(order)
        close(whole.pooled, shuffled.pooled)
        close(jnp.take_along_axis(whole.tokens, order[..., None], 1), shuffled.tokens)

    def test_hidden_patches_are_not_seen(self):
        module, params = vit(mask_token=True)
        keep = jnp.array([[0, 5, 9]] * 4, jnp.int32)
        other = IMAGES.at[:, 2:4, 4:6].add(1.0)  # patch (1, 2), number 6
        run = jax.jit(lambda images: apply(module, params, images, keep=keep))
        assert run(IMAGES).tokens.shape == (4, 3, 16)
        np.testing.assert_array_equal(run(IMAGES).pooled, run(other).pooled)
        assert (run(IMAGES).pooled != run(IMAGES.at[:, 2:4, 2:4].add(1.0)).pooled).any()  # patch 5 is kept
        mask = jnp.zeros((4, 16), bool).at[:, 6].set(True)
        run = jax.jit(lambda images, mask: apply(module, params, images, patch_mask=mask))
        np.testing.assert_array_equal(run(IMAGES, mask).tokens, run(other, mask).tokens)
        assert (run(IMAGES, ~mask).tokens != run(other, ~mask).tokens).any()
        both = apply(module, params, IMAGES, keep=keep.at[:, 0].set(6), patch_mask=mask)
        np.testing.assert_array_equal(
            both.tokens, apply(module, params, other, keep=keep.at[:, 0].set(6), patch_mask=mask).tokens
        )

    def test_other_image_sizes(self):
        module, params = vit()
        assert apply(module, params, IMAGES[:, :4, :6]).tokens.shape == (4, 6, 16)
        assert module.grid((1, 4, 6, 3)) == (2, 3)

    def test_errors(self):
        with pytest.raises(UserError, match=r"model.patch_size: 3 does not divide the image size 8x8"):
            vit(patch_size=3)
        module, params = vit()
        with pytest.raises(UserError, match=r"model.patch_size: 2 does not divide the image size 5x8"):
            apply(module, params, IMAGES[:, :5])
        with pytest.raises(UserError, match=r"model.mask_token: false"):
            apply(module, params, IMAGES, patch_mask=jnp.zeros((4, 16), bool))
        with pytest.raises(UserError, match=r"model.name: this model reads 'image', but the data have: tokens"):
            models.create(VIT, Spec({"tokens": {"shape": [12]}}))
        with pytest.raises(UserError, match=r"model.width: sine-cosine positions need a multiple of 4, got 6"):
            models.create({**VIT, "positions": "sincos", "width": 6}, SPEC)


class TestTokens:
    @pytest.mark.parametrize("name", ["bert", "gpt", "llama", "deberta"])
    def test_the_objective_chooses_the_mask(self, name):
        module, params = text(name)
        run = lambda t, mask: apply(module, params, t, mask=mask).tokens  # noqa: E731
        changed = TOKENS.at[:, 6].set((TOKENS[:, 6] + 1) % 50)
        np.testing.assert_allclose(run(TOKENS, Causal())[:, :6], run(changed, Causal())[:, :6], atol=1e-6)
        assert (np.abs(run(TOKENS, Causal()) - run(changed, Causal()))[:, 6] > 1e-4).any()
        assert (np.abs(run(TOKENS, Full()) - run(changed, Full()))[:, :6] > 1e-5).any()

    @pytest.mark.parametrize("name", ["bert", "gpt", "llama", "deberta"])
    def test_packed_rows_equal_rows_of_their_own(self, name):
        module, params = text(name)
        segments = jnp.array([[1] * 5 + [2] * 7] * 4, jnp.int32)
        positions = jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None].repeat(4, 0)
        packed = apply(module, params, TOKENS, mask=Causal(), segment_ids=segments, positions=positions).tokens
        for part in (slice(0, 5), slice(5, 12)):
            close(packed[:, part], apply(module, params, TOKENS[:, part], mask=Causal()).tokens, 1e-4)

    @pytest.mark.parametrize("pool", ["first", "last", "mean"])
    def test_padding_changes_nothing(self, pool):
        module, params = text("gpt", pool=pool)
        run = jax.jit(lambda t: apply(module, params, t, mask=Full(), segment_ids=SEGMENTS))
        noise = TOKENS * (SEGMENTS > 0) + 3 * (SEGMENTS == 0)
        a, b = run(TOKENS), run(noise)
        close(a.pooled, b.pooled)
        close(a.pooled[1], apply(module, params, TOKENS[1:2, :7], mask=Full()).pooled[0], 1e-4)
        want = {"first": a.tokens[1, 0], "last": a.tokens[1, 6], "mean": a.tokens[1, :7].mean(0)}[pool]
        close(a.pooled[1], want)
        assert np.isfinite(apply(module, params, TOKENS, mask=Full(), segment_ids=jnp.zeros_like(TOKENS)).pooled).all()

    @pytest.mark.parametrize("name", ["bert", "gpt", "llama", "deberta"])
    def test_readout_is_the_logits(self, name):
        module, params = text(name, vocab_multiple=8)
        hidden = jnp.asarray(RNG.normal(size=(5, 16)), jnp.float32)
        state, kernel, bias, _ = apply(module, params, hidden, method="readout")
        logits = apply(module, params, hidden, method="logits")
        assert kernel.shape == (16, 56) and logits.shape == (5, 56)
        close(state @ kernel + bias, logits)
        np.testing.assert_array_equal(jax.nn.softmax(logits)[:, 50:], 0)  # padded ids have no probability
        tied = params["params"]["embed"]["embedding"].T
        assert (kernel.shape == tied.shape and bool((kernel == tied).all())) == (name != "llama")

    def test_bert_readout_is_its_equations(self):
        from scipy.special import erf

        module, params = text("bert")
        p = params["params"]
        x = RNG.normal(size=(5, 16))
        h = x @ np.asarray(p["head_dense"]["kernel"], np.float64) + p["head_dense"]["bias"]
        h = h * (1 + erf(h / np.sqrt(2))) / 2
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-12)
        want = h @ np.asarray(p["embed"]["embedding"], np.float64).T
        close(apply(module, params, jnp.float32(x), method="logits"), want, 1e-4)

    def test_token_types_and_sinusoids(self):
        module, params = text("bert", token_types=2)
        zero = apply(module, params, TOKENS, mask=Full()).tokens
        given = [
            apply(module, params, TOKENS, mask=Full(), token_types=jnp.full_like(TOKENS, i)).tokens for i in (0, 1)
        ]
        close(zero, given[0])
        assert (np.abs(zero - given[1]) > 1e-4).any()
        module, params = text("gpt", positions="sinusoidal")
        assert "position_embed" not in params["params"]
        same = jnp.full_like(TOKENS, 7)
        out = apply(module, params, same, mask=Full()).tokens
        assert (np.abs(out[:, 0] - out[:, 1]) > 1e-4).any()

    def test_errors(self):
        with pytest.raises(UserError, match=r"model.vocab_size: 20 is less than the 50 token ids"):
            text("gpt", vocab_size=20)
        with pytest.raises(UserError, match=r"model.max_len: 8 is less than the 12 tokens"):
            text("gpt", max_len=8)
        module, params = text("gpt")
        with pytest.raises(UserError, match=r"model.max_len: 12 positions, but a sequence has 24 tokens"):
            apply(module, params, jnp.concatenate([TOKENS, TOKENS], 1), mask=Causal())
        with pytest.raises(UserError, match=r"model.preset: unknown preset 'gpt3'.*did you mean 'gpt2'"):
            text("gpt", preset="gpt3")
        with pytest.raises(UserError, match=r"model.experts.every: 2 does not divide the depth 3"):
            text("gpt", depth=3, experts={"every": 2})
        with pytest.raises(UserError, match=r"model.positions: sinusoidal ones need an even width, got 15"):
            text("gpt", positions="sinusoidal", width=15, heads=3)
        with pytest.raises(
            UserError, match=r"model.disentangled.max_distance: got 5, must be at least 6 with 8 buckets"
        ):
            text("deberta", disentangled={"buckets": 8, "max_distance": 5})
        with pytest.raises(UserError, match=r"model.name: unknown model 'brt'; did you mean 'bert'"):
            models.create({"name": "brt"}, SPEC)


class TestCLIP:
    def make(self, **keys):
        module = models.create({**CLIP, **keys}, SPEC)
        return module, nn.unbox(jax.jit(module.init)(jax.random.key(0), IMAGES, TOKENS))

    def test_towers(self):
        module, params = self.make()
        image = apply(module, params, IMAGES, method="image")
        words = apply(module, params, TOKENS, SEGMENTS, method="text")
        assert image.shape == words.shape == (4, 8) and module.width == 8
        np.testing.assert_allclose(apply(module, params, method="scale"), 1 / 0.07, rtol=1e-5)
        noise = TOKENS * (SEGMENTS > 0) + 3 * (SEGMENTS == 0)
        close(words, apply(module, params, noise, SEGMENTS, method="text"))
        close(apply(module, params, IMAGES, TOKENS, SEGMENTS), (image, words, jnp.float32(1 / 0.07)))

    def test_errors_name_the_tower(self):
        image = {**CLIP["image"], "patch_size": 3}
        with pytest.raises(UserError, match=r"model.image.patch_size: 3 does not divide"):
            self.make(image=image)
        with pytest.raises(UserError, match=r"model.text.max_len: 4 is less"):
            self.make(text={**SMALL, "max_len": 4})


class TestMAEDecoder:
    def test_tokens_go_to_their_places(self):
        decoder = MAEDecoder(width=16, depth=1, heads=2).module((4, 4), 12)
        tokens = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32)
        keep = jnp.array([[1, 5, 9], [0, 7, 15]], jnp.int32)
        params = nn.unbox(decoder.init(jax.random.key(0), tokens, keep))
        run = jax.jit(lambda tokens, keep: apply(decoder, params, tokens, keep))
        out = run(tokens, keep)
        assert out.shape == (2, 16, 12) and out.dtype == jnp.float32
        order = jnp.array([2, 0, 1])
        close(out, run(tokens[:, order], keep[:, order]))
        # With no attention to others, only a patch that is kept depends on its token.
        params["params"]["stack"] = jax.tree.map(jnp.zeros_like, params["params"]["stack"])
        params["params"]["stack"]["norm"]["scale"] = jnp.ones(16)
        own = np.zeros((2, 16), bool)
        np.put_along_axis(own, np.asarray(keep), True, axis=1)
        moved = np.abs(apply(decoder, params, tokens, keep) - apply(decoder, params, 2 * tokens, keep)).max(-1) > 1e-6
        np.testing.assert_array_equal(moved, own)


FAMILIES = {
    "vit": (VIT | {"registers": 1, "mask_token": True, "layer_scale": 0.1}, lambda m: (IMAGES,)),
    "bert": (TEXT["bert"] | {"token_types": 2}, lambda m: (TOKENS,)),
    "gpt": (LLAMA, lambda m: (TOKENS,)),
    "clip": (CLIP, lambda m: (IMAGES, TOKENS)),
    "resnet": ({"name": "resnet", "preset": None, "channels": 8, "depths": [1, 2], "groups": 4}, lambda m: (IMAGES,)),
    "gin": ({"name": "gin", "width": 16, "depth": 2}, lambda m: GRAPHS),
    "rnn": ({"name": "rnn", "width": 16, "depth": 2}, lambda m: (TOKENS,)),
    "word_vectors": ({"name": "word_vectors", "width": 16}, lambda m: (TOKENS,)),
}


def create(name, **keys):
    """A small model of a family, and what it reads."""
    if name in FAMILIES:
        config, inputs = FAMILIES[name]
        module = models.create({**config, **keys}, SPEC)
        return module, inputs(module)
    cls = models.REGISTRY.get(name)
    small = {"preset": None, "width": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 24}
    if cls.inputs in ("images", "spectrograms"):
        module = models.create({"name": name, **small, "patch_size": 2, **keys}, SPEC)
        return module, (IMAGES if cls.inputs == "images" else SPECTROGRAMS,)
    if cls.inputs in ("pairs", "image_text"):
        image = {**small, "patch_size": 2, **keys.get("image", {})}
        text = {**({"name": "llama"} if name == "llava" else {}), **small, **keys.get("text", {})}
        own = {"image_token": 7} if name == "llava" else {}
        module = models.create({"name": name, "image": image, "text": text, **own}, SPEC)
        # One placeholder per patch, so that rows of tokens and images can be cut together.
        return module, (IMAGES, TOKENS) if name == "siglip" else (jnp.full((4, 16), 7), IMAGES)
    tiny = {**small, "vocab_size": 50}
    recipe = cls()
    tiny |= {"embedding_dim": 8} if recipe.embedding_dim else {}
    tiny |= {"window": 3} if recipe.window else {}
    module = cls(**tiny, max_len=16, **keys).standalone()
    return module, (TOKENS,) if cls.inputs == "tokens" else (TOKENS, TOKENS[:, :5])


def initialise(name):
    module, inputs = create(name)
    return module.initial if hasattr(module, "initial") else lambda key: module.init(key, *inputs)


@pytest.mark.parametrize("name", list(models.REGISTRY))
def test_every_parameter_has_axes_of_the_table(name):
    boxed = jax.eval_shape(initialise(name), jax.random.key(0))["params"]
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert isinstance(leaf, nn.Partitioned) and len(leaf.names) == len(leaf.value.shape), path
        assert {n for n in leaf.names if n} <= set(RULES), path
        stacked = ("layers" in leaf.names) + ("experts" in leaf.names)
        assert len(leaf.value.shape) <= 2 + stacked, f"{path}: kernels are matrices"


# Families that differ in numbers only follow under `-m full`.
OWN = ["vit", "bert", "gpt", "clip", "albert", "mixtral", "t5"]
OTHERS = [
    pytest.param(name, marks=pytest.mark.full)
    for name in models.REGISTRY
    if name not in (*OWN, "word_vectors")  # which have no noise
]


@pytest.mark.parametrize("name", [*daily(OWN, 5), *OTHERS])
def test_noise_belongs_to_examples(name):
    rates = {"dropout": 0.3, "drop_path": 0.3}
    if models.REGISTRY.get(name).inputs in ("pairs", "image_text"):
        rates = {tower: {**(CLIP[tower] if name == "clip" else {}), **rates} for tower in ("image", "text")}
    if name in ("resnet", "gin", "rnn"):
        rates = {"drop_path": 0.6} if name == "resnet" else {"dropout": 0.3}
    module, inputs = create(name, **rates)
    params = nn.unbox(jax.jit(initialise(name))(jax.random.key(0)))
    more = {"mask": Causal()} if isinstance(module, TokenModel) else {}

    @jax.jit
    def run(inputs, row):
        out = apply(module, params, *inputs, noise=Noise(jax.random.key(5), row), **more)
        return out[:2] if isinstance(out, tuple) else (out, out)

    rows = jnp.arange(4)
    whole = run(inputs, rows)
    halves = [run(tuple(a[i : i + 2] for a in inputs), rows[i : i + 2]) for i in (0, 2)]
    close(whole, jax.tree.map(lambda *a: jnp.concatenate(a), *halves), 1e-4)
    silent = apply(module, params, *inputs, **more)
    silent = silent[1] if isinstance(silent, tuple) else silent
    assert np.abs(whole[1] - silent).max() > 1e-3


def test_every_preset_is_possible():
    elements = {"image": [224, 224, 3], "tokens": [64], "spectrogram": [1024, 128], "nodes": [5, 4]}
    spec = Spec({name: {"shape": shape} for name, shape in elements.items()}, 1000)
    for name in models.REGISTRY:
        config = models.REGISTRY.get(name)
        for size in getattr(config, "presets", {}):
            if config.inputs == "sequences":
                assert config(preset=size).standalone()
            else:
                models.create({"name": name, "preset": size}, spec)
    for size in MAEDecoder.presets:
        MAEDecoder(preset=size).validate()
    given = models.create({"name": "vit", "preset": "base", "depth": 3}, spec).config
    assert (given.width, given.depth, given.heads) == (768, 3, 12)


def test_activations_are_constrained_under_a_mesh_and_results_stay():
    """Flax drops logical constraints silently when no mesh is set the new way: count them in the program."""
    module, params = text("gpt")
    run = jax.jit(lambda params, tokens: module.apply(params, tokens, mask=Causal()).tokens)
    want = run(params, TOKENS)
    run = jax.jit(lambda params, tokens: module.apply(params, tokens, mask=Causal()).tokens)
    with mesh_context(make_mesh(MeshConfig(2, 2, 2))):
        assert run.lower(params, TOKENS).as_text().count("sharding_constraint") >= 2
        close(run(params, TOKENS), want, 1e-4)


def test_models_from_outside():
    path = "ssljax.models.vit:ViTConfig"
    assert models.create({**VIT, "name": path}, SPEC).width == 16
