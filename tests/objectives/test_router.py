"""Router losses against their definitions: one term per module and layer, padding left out, exact over slices."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily

from ssljax import parallel
from ssljax.base import schema
from ssljax.layers.masks import Causal, Full, Keys
from ssljax.objectives.base import Ctx, Objective, apply, stream, views_of
from ssljax.objectives.router import RouterLosses, with_router_losses

EXPERTS = {"count": 4, "top_k": 2, "balance": 0.3, "z_loss": 0.2}
BLOCK = {"preset": None, "width": 16, "depth": 2, "heads": 2, "dropout": 0.0}
IMAGE = {**BLOCK, "patch_size": 4}
SWITCH = {"name": "switch", "vocab_size": 80, **BLOCK}
SWITCH |= {"depth": 2, "decoder_depth": 6, "experts": {**EXPERTS, "top_k": 1, "every": 2}}


def made(name="causal_lm", **experts):
    return tiny.make(name, experts={**EXPERTS, **experts}, dropout=0.0, drop_path=0.0)


def inputs_of(objective):
    batch = tiny.batch()
    variables = jax.jit(lambda: parallel.unboxed(objective.init(jax.random.key(0), batch)))()
    inputs = jax.jit(lambda b: views_of(objective, stream(0, 1, "views"), b, jnp.int32(1)))(batch)
    ctx = Ctx(stream(0, 1, "encode"), jnp.int32(1), jnp.arange(tiny.BATCH, dtype=jnp.int32))
    return variables, inputs, ctx


def terms_of(objective, variables, inputs, ctx):
    def terms(variables, inputs):
        outputs = objective.encode(variables.params, variables.extra, inputs, ctx)
        return objective.loss(variables.params, variables.extra, outputs, inputs, ctx).terms

    return jax.jit(terms)(variables, inputs)


def value(terms, name):
    """Contribution to the loss of the terms with this name, summed over modules."""
    parts = [c * s / w for key, (c, s, w) in terms.items() if key.split("/")[0] == name]
    assert parts, f"no term {name!r} in {sorted(terms)}"
    return float(sum(parts))


def defined(logits_LxBxTxE, valid_BxT=None, top_k=2):
    """(balance, mean squared log-partition), summed over layers, in float64 from the definitions."""
    balance = z = 0.0
    for layer in np.asarray(logits_LxBxTxE, np.float64):
        flat = layer.reshape(-1, layer.shape[-1]) if valid_BxT is None else layer[np.asarray(valid_BxT)]
        n, experts = flat.shape
        p = np.exp(flat - flat.max(-1, keepdims=True))
        partition = np.log(p.sum(-1)) + flat.max(-1)
        p /= p.sum(-1, keepdims=True)
        share = np.zeros(experts)
        for row in flat:
            for chosen in np.argsort(-row)[:top_k]:
                share[chosen] += 1 / top_k / n
        balance += experts * (share * p.mean(0)).sum()
        z += (partition**2).mean()
    return balance, z


def check(objective, modules, coefficients=(0.3, 0.2), top_k=2):
    """Compares terms with their definitions; `modules(variables, inputs)` yields (logits, valid) of each module."""
    variables, inputs, ctx = inputs_of(objective)
    found = terms_of(objective, variables, inputs, ctx)
    logits_valid = jax.jit(lambda v, i: list(modules(v, i)))(variables, inputs)
    expected = [defined(logits, valid, top_k) for logits, valid in logits_valid]
    for name, coefficient, values in zip(("balance", "router_z"), coefficients, zip(*expected)):
        np.testing.assert_allclose(value(found, name), coefficient * sum(values), rtol=1e-5, err_msg=name)
    return found


def test_padding_has_no_effect():
    objective = made()

    def modules(variables, inputs):
        segments, places = inputs["segment_ids"], inputs["positions"]
        run = {"mask": Causal(), "segment_ids": segments, "positions": places}
        encoded = objective.model.apply({"params": variables.params["encoder"]}, inputs["tokens"], **run)
        yield encoded.router, segments > 0

    found = check(objective, modules)
    np.testing.assert_allclose([found["balance"][0], found["router_z"][0]], [0.3, 0.2], rtol=1e-6)
    assert found["router_z"][2] == (np.asarray(tiny.batch()["segment_ids"]) > 0).sum()


def test_a_period_of_two_blocks_has_a_term_for_each_layer_with_experts():
    objective = tiny.make("causal_lm", dropout=0.0, depth=4, experts={**EXPERTS, "every": 2})

    def modules(variables, inputs):
        run = {"mask": Causal(), "segment_ids": inputs["segment_ids"], "positions": inputs["positions"]}
        encoded = objective.model.apply({"params": variables.params["encoder"]}, inputs["tokens"], **run)
        assert len(encoded.router) == 2
        yield encoded.router, inputs["segment_ids"] > 0

    check(objective, modules)


def both_stacks(objective, variables, inputs):
    """(logits, valid) of the routers of the encoder and of the decoder of span corruption."""
    run = lambda *arrays, **keywords: objective.model.apply(  # noqa: E731
        {"params": variables.params["encoder"]}, *arrays, **keywords
    )
    seen = Keys(inputs["valid"])
    read = run(inputs["tokens"], mask=seen, method="encode")
    before = jnp.pad(inputs["target"], ((0, 0), (1, 0)))[:, :-1]
    written = run(before, read.tokens, mask=Causal(), memory_mask=seen, method="decode")
    return (read.router, inputs["valid"]), (written.router, inputs["counted"])


def test_encoder_and_decoder_of_unequal_depth_have_separate_terms():
    objective = tiny.make("span_corruption", **SWITCH)
    found = check(objective, lambda variables, inputs: both_stacks(objective, variables, inputs), top_k=1)
    assert {f"balance/encoder/{side}/stack" for side in ("encoder", "decoder")} <= set(found)
    counted = [float(found[f"router_z/encoder/{side}/stack"][2]) for side in ("encoder", "decoder")]
    assert sum(counted) < tiny.BATCH * 17  # 12 tokens that are read and 5 that are written, less padding
    assert counted[0] < tiny.BATCH * 12 and counted[1] < tiny.BATCH * 5


def test_the_decoder_reads_the_start_token_of_the_family_first():
    """BART's decoder starts with id 2 (transformers: decoder_start_token_id), T5's with id 0, or as configured."""
    for name, keys, first in (("bart", {}, 2), ("t5", {}, 0), ("t5", {"decoder_start": 5}, 5)):
        objective = tiny.make("span_corruption", name=name, vocab_size=72, **keys)
        variables, inputs, ctx = inputs_of(objective)
        got = objective.encode(variables.params, variables.extra, inputs, dataclasses.replace(ctx, train=False))
        run = functools.partial(objective.model.apply, {"params": variables.params["encoder"]})
        memory = run(inputs["tokens"], mask=Keys(inputs["valid"]), method="encode").tokens
        before = np.concatenate([np.full((tiny.BATCH, 1), first), np.asarray(inputs["target"])[:, :-1]], axis=1)
        mask = {"mask": Causal(), "memory_mask": Keys(inputs["valid"]), "method": "decode"}
        np.testing.assert_allclose(got, run(jnp.asarray(before), memory, **mask).tokens, atol=1e-5)


def test_two_collapsed_routers_do_not_balance_each_other():
    """All tokens of the encoder go to expert 0, of the decoder to expert 1. Both have the maximal balance, 4."""
    keys = {**SWITCH, "name": "pegasus", "decoder_depth": 2}  # its norms have biases
    objective = tiny.make("span_corruption", **keys)
    variables, inputs, ctx = inputs_of(objective)

    def collapse(path, leaf):
        keys = jax.tree_util.keystr(path)
        if "mlp_norm" in keys:  # the router reads ones
            return jnp.full_like(leaf, "bias" in keys)
        chosen = 0 if "['encoder']['encoder']" in keys else 1
        return jnp.zeros_like(leaf).at[..., chosen].set(10.0) if "router" in keys else leaf

    params = jax.tree_util.tree_map_with_path(collapse, variables.params)
    found = terms_of(objective, variables._replace(params=params), inputs, ctx)
    np.testing.assert_allclose(value(found, "balance"), 0.3 * (4 + 4), rtol=1e-6)


@pytest.mark.parametrize("towers", daily([["text"], ["image"], ["image", "text"]], 3))
def test_towers_of_clip(towers):
    keys = {"image": dict(IMAGE), "text": dict(BLOCK)}
    for tower in towers:
        keys[tower]["experts"] = EXPERTS if tower == "image" else {**EXPERTS, "count": 3}
    objective = tiny.make("clip", name="clip", embed_dim=16, **keys)
    assert objective.unwrapped.model is objective.model and objective.model_key is None

    def modules(variables, inputs):
        given = {"params": variables.params}
        if "image" in towers:
            pixels = objective.pixels(inputs["image"])
            yield objective.model.apply(given, pixels, method="encode_image").router, None
        if "text" in towers:
            segments = inputs["segment_ids"]
            run = {"segment_ids": segments, "method": "encode_text"}
            yield objective.model.apply(given, inputs["tokens"], **run).router, segments > 0

    found = check(objective, modules)
    assert ("balance" in found) == (len(towers) == 1)
    if len(towers) == 2:
        assert {"balance/image_tower/stack", "balance/text_tower/stack"} <= set(found)


def test_the_decoder_of_a_masked_autoencoder():
    decoder = {"width": 16, "depth": 2, "heads": 2, "experts": EXPERTS}
    config = tiny.config("mae")
    config = {"model": {"name": "vit", **IMAGE, "positions": "sincos"}, "objective": {**config["objective"]}}
    config["objective"]["decoder"] = decoder
    objective = tiny.objectives.create(config, tiny.SPEC, tiny.STEPS)

    def modules(variables, inputs):
        images = objective.pixels(inputs["image"])
        encoder = {"params": variables.params["encoder"]}
        encoded = objective.model.apply(encoder, images, keep=inputs["keep"])
        module = objective._decoder(images.shape)
        given = {"params": variables.params["decoder"]}
        arrays = encoded.tokens, inputs["keep"]
        _, state = module.apply(given, *arrays, prefix=encoded.prefix, mutable=["routers"])
        (routing,) = state["routers"]["stack"]["routing"]
        assert routing.logits_LxBxTxE.shape[:2] == (2, tiny.BATCH)
        yield routing.logits_LxBxTxE, None

    check(objective, modules)


def test_captions_leave_padding_out():
    text = {"name": "llama", **BLOCK, "experts": EXPERTS}
    objective = tiny.make("captioning", name="llava", image=IMAGE, text=text)
    variables, inputs, ctx = inputs_of(objective)
    found = terms_of(objective, variables, inputs, ctx)
    patches = 4  # of an image of 8 x 8
    tokens = np.asarray(inputs["valid"])[:, :-1].sum()
    assert float(found["router_z"][2]) == tiny.BATCH * patches + tokens
    images, captions = objective.pixels(inputs["image"]), inputs["tokens"]
    run = {"method": "captions", "mutable": ["routers"]}
    model = jax.jit(lambda p, *arrays: objective.model.apply({"params": p}, *arrays, **run))
    _, state = model(variables.params, images, captions)
    (routing,) = state["routers"]["language"]["stack"]["routing"]
    valid = np.concatenate([np.ones((tiny.BATCH, patches), bool), np.asarray(inputs["valid"])[:, :-1]], axis=1)
    balance, z = defined(routing.logits_LxBxTxE, valid)
    np.testing.assert_allclose([value(found, "balance"), value(found, "router_z")], [0.3 * balance, 0.2 * z], rtol=1e-5)


def test_the_teacher_is_not_counted():
    """DINO's student sees two large and two small crops; its teacher is not trained."""
    objective = tiny.make("dino", experts=EXPERTS, dropout=0.0, drop_path=0.0)
    variables, inputs, ctx = inputs_of(objective)
    found = terms_of(objective, variables, inputs, ctx)
    assert float(found["router_z"][2]) == tiny.BATCH * (2 * 5 + 2 * 2)  # patches and a class token of each crop


CASES = {
    "causal_lm": {"experts": EXPERTS},
    "span_corruption": SWITCH,
    "clip": {"name": "clip", "embed_dim": 16, "image": IMAGE, "text": {**BLOCK, "experts": EXPERTS}},
    "simclr": {"experts": EXPERTS, "dropout": 0.0, "drop_path": 0.0},
}


@pytest.mark.parametrize("name", daily(CASES, 5))
def test_slices_equal_one_batch(name):
    objective = tiny.make(name, **CASES[name])
    assert objective.coupled
    variables, _, ctx = inputs_of(objective)
    batch = tiny.batch()
    one, four = (
        jax.jit(lambda v, b, c, k=k: tiny.gradients(objective, v.params, v.extra, b, c, k))(variables, batch, ctx)
        for k in (1, 4)
    )
    np.testing.assert_allclose(four.value, one.value, rtol=1e-5)
    assert {key.split("/")[0] for key in one.loss.terms} >= {"balance", "router_z"}
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(one.grads))
    for a, b in zip(jax.tree.leaves(four.grads), jax.tree.leaves(one.grads)):
        # The absolute tolerance is for gradients that are zero except for round-off.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-2 * scale))


def test_slices_of_an_objective_with_the_z_loss_alone():
    """The objective is not coupled: the weights of a module come from a separate pass."""
    objective = tiny.make("span_corruption", **{**SWITCH, "experts": {**SWITCH["experts"], "balance": 0.0}})
    assert not objective.coupled
    variables, inputs, ctx = inputs_of(objective)
    run = jax.jit(lambda v, b, c: tiny.gradients(objective, v.params, v.extra, b, c, 4))
    four = run(variables, tiny.batch(), ctx)
    stacks = jax.jit(lambda v, i: both_stacks(objective, v, i))(variables, inputs)
    expected = [defined(logits, valid, 1)[1] for logits, valid in stacks]
    np.testing.assert_allclose(value(four.loss.terms, "router_z"), 0.2 * sum(expected), rtol=1e-5)


def test_a_mesh_changes_nothing():
    objective = tiny.make("span_corruption", **SWITCH)
    variables, inputs, ctx = inputs_of(objective)
    boxed = jax.eval_shape(lambda: objective.init(jax.random.key(0), tiny.batch()))
    alone = terms_of(objective, variables, inputs, ctx)
    mesh = parallel.make_mesh(parallel.MeshConfig(2, 2, 1, 1, 2))
    with parallel.mesh_context(mesh):
        places = parallel.shardings(parallel.logical_axes(boxed), variables, mesh)
        split = jax.device_put(inputs, parallel.batch_sharding(mesh))
        found = terms_of(objective, jax.device_put(variables, places), split, ctx)
    assert alone.keys() == found.keys()
    for name in alone:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, err_msg=name)


def test_even_routers_have_balance_one_per_layer():
    objective = made()
    variables, inputs, ctx = inputs_of(objective)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "router" in jax.tree_util.keystr(path) else x, variables.params
    )
    found = terms_of(objective, variables._replace(params=params), inputs, ctx)
    # Two layers; probabilities are uniform, so the balance is 1 for any choices.
    np.testing.assert_allclose(value(found, "balance"), 0.3 * 2, rtol=1e-6)
    dense = tiny.make("causal_lm")
    assert with_router_losses(dense) is dense
    assert not made(balance=0.0).coupled
    assert type(made(balance=0.0, z_loss=0.0)) is type(dense)


# -- everything else is delegated to the objective -----------------------------------------------------------------


def test_settings_and_names_pass_through_the_wrapper():
    objective = made("simclr")
    inner = objective.unwrapped
    assert isinstance(objective, Objective) and type(inner).__name__ == "SimCLR" and inner.unwrapped is inner
    assert schema.to_dict(objective) == schema.to_dict(inner)
    for name in ("model", "model_key", "inputs", "spec", "steps", "classes", "temperature", "projector"):
        assert getattr(objective, name) == getattr(inner, name), name
    hotter = dataclasses.replace(objective, temperature=0.7, steps=3)
    assert hotter.temperature == hotter.unwrapped.temperature == 0.7 and hotter.steps == 3 and hotter.coupled
    assert type(hotter) is type(objective) and dataclasses.replace(hotter, temperature=0.1, steps=10) == objective
    assert copy.copy(objective) == objective
    with pytest.raises(AttributeError):
        objective.no_such_setting  # noqa: B018
    with pytest.raises(TypeError):
        dataclasses.replace(objective, no_such_setting=1)


def test_evaluations_pass_through_the_wrapper():
    objective = made("classification")
    variables, _, _ = inputs_of(objective)
    batch = objective.prepare(tiny.batch())
    for method in ("features", "score"):
        whole, inner = (jax.jit(getattr(o, method))(*variables, batch) for o in (objective, objective.unwrapped))
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(inner)):
            np.testing.assert_array_equal(a, b)
    assert objective.flops(tiny.SPEC) == objective.unwrapped.flops(tiny.SPEC)
    assert objective.classes == 5


def test_two_modules_under_one_name_are_refused():
    class Twice(type(tiny.make("causal_lm"))):
        def encode(self, params, extra, inputs, ctx):
            other = dataclasses.replace(self.model, config=dataclasses.replace(self.model.config, depth=1))
            first = jax.tree.map(lambda x: x[:1], params["encoder"]["stack"]["layers"])
            stack = {**params["encoder"]["stack"], "layers": first}
            apply(other, {**params["encoder"], "stack": stack}, inputs["tokens"], mask=Full(), ctx=ctx)
            return super().encode(params, extra, inputs, ctx)

    inner = made().unwrapped
    fields = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    objective = RouterLosses(Twice(**fields))
    variables, inputs, ctx = inputs_of(objective)
    with pytest.raises(ValueError, match="'encoder/stack': give `apply` a `part`"):
        terms_of(objective, variables, inputs, ctx)
    assert ctx.routers is None
