"""muP: the standard parametrisation at the base width, the rules of the table beyond, and the coordinate check.

The coordinate check of every family: pytest -m full tests/layers/test_width.py (some minutes).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily

from ssljax import models, objectives
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError
from ssljax.layers.masks import Causal, Full
from ssljax.models.clip import CLIP
from ssljax.models.seq2seq import EncoderDecoder, Seq2SeqConfig
from ssljax.models.tokens import TokenModel
from ssljax.models.vit import ViTConfig
from ssljax.train.optimization import Optimization
from ssljax.train.optimizers import REGISTRY
from ssljax.train.state import abstract_variables, make_init, make_variables
from ssljax.train.step import make_update

BASE = 64
GPT = {"preset": None, "width": BASE, "depth": 2, "heads": 4}


def grown(width, base=BASE, **more):
    """Keys of a transformer that is `width` wide, with heads of width 16."""
    return {"preset": None, "width": width, "depth": 2, "heads": width // 16, "mup_base_width": base, **more}


def build(groups, learning_rate=0.01, optimizer="adamw", **options):
    """(objective, bound optimisation, init, update) of a config on the batch of `tiny_objectives`."""
    objective = objectives.create(groups, tiny.SPEC, tiny.STEPS)
    variables = make_variables(objective, tiny.batch())
    shapes, axes = abstract_variables(variables)
    rule = REGISTRY.get(optimizer)(learning_rate=learning_rate, **options)
    bound = Optimization(rule, lambda step: 1.0, RunLengths(tiny.BATCH, 1000, 12, total_steps=10))
    bound = bound.bind(axes.params, shapes.params)
    return objective, bound, make_init(objective, variables, bound, False, None), make_update(objective, bound)


def trained(groups, steps, seed=0, **options):
    """The state after some steps."""
    _, _, init, update = build(groups, **options)
    state, update = jax.jit(init)(seed), jax.jit(update)
    for step in range(steps):
        state, _ = update(state, tiny.batch(step))
    return state


@pytest.mark.parametrize("name", daily(["causal_lm", "classification", "mae"], 3))
def test_at_the_base_width_nothing_changes(name):
    groups = tiny.config(name)
    with_mup = {**groups, "model": {**groups["model"], "mup_base_width": 32, "mup_base_heads": 4}}
    plain, scaled = (trained(g, 3) for g in (groups, with_mup))
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(scaled.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_initial_values_learning_rates_and_decays_of_a_wider_model():
    """Deviations and factors of every role at four times the base width, from the table of `layers.width`."""
    keys = {"init": "normal", "tied": False, "experts": {"count": 4, "top_k": 2, "every": 2}}
    groups = {"objective": {"name": "causal_lm"}, "model": {"name": "gpt", **grown(4 * BASE, **keys)}}
    _, bound, init, _ = build(groups, weight_decay=0.1)
    params, leaves = jax.jit(init)(0).params, bound.bound().leaves
    flat = {"/".join(str(k.key) for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in leaves.items():
        std, wide = float(jnp.std(flat[name])), leaf.width_ratio == 4
        if leaf.role == "matrix":
            assert wide and leaf.lr == 0.25 and leaf.wd == 4.0, name
            want = 0.02 / 4 if name.endswith("router") else 0.02 / 2  # the router has outputs of a fixed size
            assert std == pytest.approx(want, rel=0.1), name
        else:
            assert not wide and leaf.lr == 1.0, name
            if leaf.role in ("embedding", "position", "head"):
                assert std == pytest.approx(0.02, rel=0.1), name


def test_logits_of_attention_and_read_out():
    narrow = models.create({"name": "gpt", **grown(BASE)}, tiny.SPEC)
    wide = models.create({"name": "gpt", **grown(4 * BASE, mup_base_heads=4), "heads": 4}, tiny.SPEC)
    assert narrow.config.head_ratio == 1 and wide.config.head_ratio == 4 and wide.width_ratio == 4
    variables = {"params": nn.unbox(wide.initial(jax.random.key(0))["params"])}
    hidden = jnp.ones((1, 1, 4 * BASE))
    logits = wide.apply(variables, hidden, method="logits")
    table = variables["params"]["embed"]["embedding"]
    np.testing.assert_allclose(logits[0, 0], table.sum(1) / 4, rtol=1e-4, atol=1e-5)


def test_heads_of_objectives_have_the_ratio_of_the_encoder():
    for name, part in (("classification", "head"), ("simclr", "projector"), ("dino", "head"), ("mae", "decoder")):
        groups = tiny.config(name)
        groups = {**groups, "model": {**groups["model"], "mup_base_width": 16}}
        _, bound, _, _ = build(groups)
        ratios = {path: leaf.width_ratio for path, leaf in bound.bound().leaves.items() if path.startswith(part)}
        wide = {path for path, ratio in ratios.items() if ratio == 2}
        assert len(wide) == 1 and min(ratios.values()) == 1, (name, wide)


def test_other_optimisers_are_refused():
    groups = {"objective": {"name": "causal_lm"}, "model": {"name": "gpt", **grown(2 * BASE)}}
    with pytest.raises(
        UserError, match=r"model.mup_base_width: muP is for .* \(optimizer.name: adamw, lion\), got SGD"
    ):
        build(groups, optimizer="sgd")[2](0)


def hidden(objective, params, batch):
    """{name: hidden states between blocks, logits, features} of the model of an objective."""
    model, encoder = objective.model, {"params": params.get("encoder", params)}  # towers have no further head
    run = functools.partial(model.apply, encoder)
    tokens, images = batch["tokens"], objective.prepare(batch).get("image")
    if isinstance(model, EncoderDecoder):
        memory = run(tokens, mask=Full(), states=True, method="encode")
        decoded = run(tokens, memory.tokens, mask=Causal(), states=True, method="decode")
        return {"encoder": memory.states, "decoder": decoded.states, "logits": run(tokens, tokens)}
    if isinstance(model, CLIP):
        image, text = (
            run(x, states=True, method=f"encode_{name}") for name, x in (("image", images), ("text", tokens))
        )
        vectors = dict(zip(("image vectors", "text vectors"), run(images, tokens)))
        return {"image": image.states, "text": text.states, **vectors}
    if isinstance(model, TokenModel):
        encoded = run(tokens, mask=Full(), states=True)
        return {"states": encoded.states, "logits": run(encoded.tokens, method="logits")}
    encoded = run(images, states=True)
    head = {"logits": objective.head().apply({"params": params["head"]}, encoded.pooled)}
    return {"states": encoded.states, "pooled": encoded.pooled, **head}


def changes(groups, steps, seed, learning_rate):
    """{output: mean absolute change after some steps}."""
    objective, _, init, update = build(groups, learning_rate)
    start, update = jax.jit(init)(seed), jax.jit(update)
    state = start
    for _ in range(steps):
        state, _ = update(state, tiny.batch(0))
    outputs = jax.jit(lambda params: hidden(objective, params, tiny.batch(0)))
    moved = jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a - b)), outputs(state.params), outputs(start.params))
    return {str(name): float(value) for name, value in moved.items()}


def exponents(make, widths, steps=5, seeds=2, learning_rate=0.01):
    """{output: exponent with which its change grows with the width}."""
    table = [[changes(make(width), steps, seed, learning_rate) for seed in range(seeds)] for width in widths]
    logs = {name: [np.mean([math.log(one[name]) for one in row]) for row in table] for name in table[0][0]}
    return {name: float(np.polyfit(np.log(widths), values, 1)[0]) for name, values in logs.items()}


def of_family(name, base):
    """width -> the groups of a config of a family."""
    towers = {"clip", "siglip"}
    objective = "clip" if name in towers else "classification" if name in IMAGES else "causal_lm"
    objective = "span_corruption" if name in SEQUENCES else name if name == "siglip" else objective

    def make(width):
        keys = grown(width, base)
        if name == "rnn":
            del keys["preset"], keys["heads"]
        if name in towers:
            return {
                "objective": {"name": objective},
                "model": {"name": name, "image": {**keys, "patch_size": 4}, "text": keys, "embed_dim": 16},
            }
        more = {"patch_size": 4} if name in IMAGES else {"vocab_size": 72} if name in SEQUENCES else {}
        return {"objective": {"name": objective}, "model": {"name": name, **keys, **more}}

    return make


@pytest.mark.parametrize("name", daily(["gpt"], 3))
def test_with_mup_the_changes_of_a_step_keep_their_size(name):
    """The standard parametrisation beside it: logits of wide models change more, with an exponent near 1."""
    assert max(map(abs, exponents(of_family(name, BASE), (64, 256)).values())) < 0.2
    assert exponents(of_family(name, None), (64, 256))["logits"] > 0.5


IMAGES = [name for name in models.REGISTRY if issubclass(models.REGISTRY.get(name), ViTConfig) and name != "ast"]
SEQUENCES = [name for name in models.REGISTRY if issubclass(models.REGISTRY.get(name), Seq2SeqConfig)]
# Graphs, a spectrogram, and images within text, have their own objectives; word vectors have no hidden maps; the towers
# are those of the other families.
OTHERS = ("resnet", "gin", "word_vectors", "ast", "llava", "gpt", "gemma3")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in models.REGISTRY if name not in OTHERS])
def test_the_same_of_every_family(name):
    scaled, standard = (
        exponents(of_family(name, BASE), (64, 128, 256)),
        exponents(of_family(name, None), (64, 128, 256)),
    )
    print(name, {k: round(v, 2) for k, v in scaled.items()}, {k: round(v, 2) for k, v in standard.items()})
    assert max(scaled.values()) < 0.25 and max(standard.values()) > max(scaled.values())
