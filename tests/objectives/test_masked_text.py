"""Objectives over masked text: whole words, span boundaries, sentence pairs and replaced tokens, by definition."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.data.spec import packed_words
from ssljax.models.tokens import Readout
from ssljax.objectives.base import total, views_of
from ssljax.objectives.masked import electra
from ssljax.objectives.masked.text import restored

BEGINS = np.arange(64) % 3 == 0
SPEC = dataclasses.replace(tiny.SPEC, word_starts=packed_words(BEGINS))
WINDOWS = dataclasses.replace(SPEC, elements={"tokens": SPEC.elements["tokens"]})
BERT = {**tiny.CONFIGS["mlm"]["model"], "dropout": 0.0}
PAIR = {**BERT, "token_types": 2, "extras": ("pooler", "pair")}
KEY = jax.random.key(3)


def make(name="mlm", spec=SPEC, model=BERT, **settings):
    return objectives.create({"model": model, "objective": {"name": name, **settings}}, spec).unwrapped


def windows():
    return {"tokens": jnp.asarray(np.random.default_rng(0).integers(4, 64, (tiny.BATCH, tiny.LENGTH)), jnp.int32)}


@functools.cache
def random_params(objective_of):
    """Random parameters of the objective that a function makes."""
    objective = objective_of()
    batch = windows() if objective.spec is WINDOWS else tiny.batch()
    shapes = nn.unbox(jax.eval_shape(objective.init, KEY, batch)).params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.02, 0.3, leaf.shape), leaf.dtype), shapes)


def ctx_of(step=0):
    return objectives.base.Ctx(KEY, jnp.int32(step), jnp.arange(tiny.BATCH, dtype=jnp.int32), train=False)


def logs(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def parts(objective, params, batch):
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    outputs = objective.encode(params, {}, inputs, ctx_of())
    return inputs, outputs, objective.loss(params, {}, outputs, inputs, ctx_of())


def logits_of(objective, params, hidden):
    return objective.model.apply({"params": params["encoder"]}, hidden, method="logits")


# --- whole words ------------------------------------------------------------------------------------------------------


def test_the_objective_masks_whole_words():
    objective, batch = make(units="word", rate=0.4), tiny.batch()
    inputs, unit = objective.masked(jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(tiny.BATCH)), batch)
    tokens, segments, unit = (np.asarray(x) for x in (batch["tokens"], batch["segment_ids"], unit))
    joined = 0
    for row, of, chosen in zip(tokens, segments, unit):
        for i in range(1, tiny.LENGTH):
            if of[i] and of[i] == of[i - 1] and not BEGINS[row[i]]:
                assert chosen[i] == chosen[i - 1]
                joined += chosen[i] > 0
    assert joined > 5
    np.testing.assert_array_equal(np.asarray(inputs["counted"]).sum(1), (unit > 0).sum(1))


def test_words_need_a_tokenizer_that_marks_them():
    with pytest.raises(UserError, match=r"objective.units: got 'word', but data.tokenizer does not mark"):
        make(spec=tiny.SPEC, units="word")


# --- span boundaries --------------------------------------------------------------------------------------------------


def spanbert():
    return make(rate=0.4, spans=(0.2, 4), boundary=True)


def test_boundary_needs_spans():
    with pytest.raises(UserError, match=r"boundary: got True, but there are no spans; set spans"):
        make(boundary=True)


def boundary_nll(objective, params, head, inputs, hidden):
    """Sum and number of -log p of the tokens of spans from the vectors around them, in float64."""
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), head)
    total, count = 0.0, 0
    erf = np.vectorize(math.erf)
    kernel, bias = params["encoder"]["embed"]["embedding"], params["encoder"]["head_bias"]
    kernel, bias = (np.asarray(x, np.float64) for x in (kernel, bias))
    at = {name: np.asarray(x) for name, x in inputs["boundary"].items()}
    for row in range(tiny.BATCH):
        for k in np.flatnonzero(np.asarray(inputs["counted"][row]) & at["inside"][row]):
            left, right = hidden[row, at["left"][row, k]], hidden[row, at["right"][row, k]]
            x = np.concatenate([left, right, head["place"]["embedding"][at["place"][row, k]]])
            for i in range(2):
                x = x @ head[f"Dense_{i}"]["kernel"] + head[f"Dense_{i}"]["bias"]
                x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
                x = x * head[f"Norm_{i}"]["scale"] + head[f"Norm_{i}"]["bias"]
            total -= logs(x @ kernel.T + bias)[int(inputs["target"][row, k])]
            count += 1
    return total, count


def test_span_boundary_loss_by_its_definition():
    """Values and gradients; tokens of spans at the edge of a text are not in the loss."""
    objective, batch, params = spanbert(), tiny.batch(), random_params(spanbert)
    inputs, _, loss = parts(objective, params, batch)
    hidden = np.asarray(objective.hidden(params, inputs, None).tokens, np.float64)
    expected, count = boundary_nll(objective, params, params["boundary"], inputs, hidden)
    coefficient, value, weight = loss.terms["boundary"]
    assert coefficient == 1 and weight == count and 10 < count < np.asarray(inputs["counted"]).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)

    def by_head(head):
        whole = {**params, "boundary": head}
        outputs = objective.encode(whole, {}, inputs, ctx_of())
        return objective.loss(whole, {}, outputs, inputs, ctx_of()).terms["boundary"][1]

    grads = jax.jit(jax.grad(by_head))(params["boundary"])
    rng = np.random.default_rng(0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        place = tuple(rng.integers(0, n) for n in leaf.shape) if path[0].key != "place" else (1, 3)

        def moved(step, path=path, place=place):
            def change(other, x):
                x = np.array(x, np.float64)
                if other == path:
                    x[place] += step
                return x

            head = jax.tree_util.tree_map_with_path(change, params["boundary"])
            return boundary_nll(objective, params, head, inputs, hidden)[0]

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(leaf[place], slope, rtol=1e-3, atol=1e-3, err_msg=str(path))
    assert np.abs(grads["place"]["embedding"]).max() > 0


# --- sentence pairs ---------------------------------------------------------------------------------------------------


def test_pairs_need_a_head_and_types():
    with pytest.raises(UserError, match=r"objective.pairs: 'next' needs a head for pairs; add 'pair' to model.extras"):
        make(spec=WINDOWS, pairs="next")
    with pytest.raises(UserError, match=r"objective.pairs: 'next' needs token types; set model.token_types to 2"):
        make(spec=WINDOWS, model={**PAIR, "token_types": 0}, pairs="next")


def order():
    return make(spec=WINDOWS, model=PAIR, pairs="order", rate=0.3)


def following():
    return make(spec=WINDOWS, model=PAIR, pairs="next", rate=0.3)


@pytest.mark.parametrize("objective_of", [order, following])
def test_pairs_by_their_definition(objective_of):
    objective, batch, params = objective_of(), windows(), random_params(objective_of)
    inputs, _, loss = parts(objective, params, batch)
    tokens, apart = np.asarray(batch["tokens"]), np.asarray(inputs["apart"])
    before = np.asarray(inputs["tokens"]).copy()
    for row, at, to in zip(before, np.asarray(inputs["chosen_at"]), np.asarray(inputs["target"])):
        row[at] = to
    assert 0 < apart.sum() < tiny.BATCH
    for i, row in enumerate(before):  # [CLS] A [SEP] B [SEP] with halves of four tokens
        first, second = tokens[i, :4], tokens[i, 4:8]
        if apart[i]:
            first, second = (second, first) if objective.pairs == "order" else (first, tokens[i - 1, 4:8])
        assert row.tolist() == [1, *first, 2, *second, 2, 0]
    assert not np.isin(before[np.arange(16)[:, None], inputs["chosen_at"]][np.asarray(inputs["counted"])], (1, 2)).any()
    encoded = objective.hidden(params, inputs, None)
    logits = objective.model.apply({"params": params["encoder"]}, encoded.pooled, method="pair_logits")
    expected = -logs(logits)[np.arange(tiny.BATCH), apart.astype(int)]
    coefficient, value, weight = loss.terms["pair"]
    assert coefficient == 1 and weight == tiny.BATCH
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
    right = (np.argmax(np.asarray(logits), -1) == apart).sum()
    assert loss.metrics["accuracy/pair"] == (right, tiny.BATCH)
    types = jax.grad(lambda p: total(parts(objective, p, batch)[2].terms))(params)["encoder"]["type_embed"]
    assert (np.abs(types["embedding"]).max(1) > 0).all()


@pytest.mark.parametrize("objective_of", [order, following])
def test_pairs_in_slices_equal_one_batch(objective_of):
    objective, params = objective_of(), random_params(objective_of)
    one, four = (
        jax.jit(lambda p, n=n: tiny.gradients(objective, p, {}, windows(), ctx_of(), n))(params) for n in (1, 4)
    )
    np.testing.assert_allclose(one.value, four.value, rtol=1e-5)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one.grads))
    for a, b in zip(jax.tree.leaves(one.grads), jax.tree.leaves(four.grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("pairs", ["order", "next"])
def test_pairs_of_ragged_rows(pairs):
    """A row's first text is cut in halves; rows of less than two tokens have no weight."""
    objective = make(model=PAIR, pairs=pairs, rate=0.3)
    batch = tiny.batch()
    batch["segment_ids"] = batch["segment_ids"].at[:2].set(0).at[2].set(jnp.arange(tiny.LENGTH) == 0)
    params = random_params(order)
    inputs, outputs, loss = parts(objective, params, batch)
    whole, segments = np.asarray(inputs["whole"]), np.asarray(batch["segment_ids"])
    sizes = np.minimum((segments == 1).sum(1), tiny.LENGTH - 3) // 2
    others = np.where(np.asarray(inputs["apart"]) & (pairs == "next"), np.roll(sizes, 1), sizes)
    np.testing.assert_array_equal(whole, (sizes > 0) & (others > 0))
    np.testing.assert_array_equal(np.asarray(inputs["segment_ids"]).sum(1), sizes + others + 3)
    assert loss.terms["pair"][2] == whole.sum() < tiny.BATCH
    values = -logs(outputs["pair"])[np.arange(tiny.BATCH), np.asarray(inputs["apart"]).astype(int)]
    np.testing.assert_allclose(loss.terms["pair"][1], values[whole].sum(), rtol=1e-5)


def test_a_batch_of_one_row_has_no_other_text():
    objective = following()
    batch = {"tokens": windows()["tokens"][:1]}
    found = [views_of(objective, jax.random.key(i), batch, jnp.int32(0)) for i in range(8)]
    assert not any(np.asarray(inputs["apart"]).any() for inputs in found)


def test_half_of_many_pairs_are_apart():
    objective = following()
    batch = {"tokens": jnp.tile(windows()["tokens"], (64, 1))}
    share = np.asarray(views_of(objective, KEY, batch, jnp.int32(0))["apart"]).mean()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1024))


# --- ELECTRA ----------------------------------------------------------------------------------------------------------

FORMS = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")
DISCRIMINATOR = {**BERT, "token_types": 2, "extras": ("replaced",)}


@functools.cache
def electra_of(form):
    return make("electra", model=DISCRIMINATOR, form=form, generator=0.5, rate=0.3)


def electra_params(form):
    return random_params(functools.cache(functools.partial(electra_of, form)))


def generator_logits(objective, params, inputs):
    """Logits [B, T, V] of the generator, from its own parameters and the tables of the encoder."""
    own = params["generator"] | {name: params["encoder"][name] for name in electra.SHARED}
    keys = {"mask": objective.attention, "segment_ids": inputs["segment_ids"], "positions": inputs["positions"]}
    encoded = objective.generator_model.apply({"params": own}, inputs["tokens"], **keys)
    return objective.generator_model.apply({"params": own}, encoded.tokens, method="logits")


def with_lucky_samples(objective, params):
    """A batch in which the generator draws some original tokens: its samples do not depend on what masks hide."""
    batch = tiny.batch()
    _, outputs, _ = parts(objective, params, batch)
    lucky = (outputs["tokens"] > 3) & (jnp.arange(tiny.LENGTH) % 2 == 0)
    return {**batch, "tokens": jnp.where(lucky, outputs["tokens"], batch["tokens"])}


@pytest.mark.parametrize("form", FORMS)
def test_electra_by_its_definition(form):
    objective, params = electra_of(form), electra_params(form)
    batch = with_lucky_samples(objective, params)
    inputs, outputs, loss = parts(objective, params, batch)
    original, read, masked = (np.asarray(x) for x in (batch["tokens"], outputs["tokens"], inputs["tokens"]))
    known, chosen = np.asarray(batch["segment_ids"]) > 0, masked == tiny.SPEC.special_ids["mask"]
    assert chosen.sum() == np.asarray(inputs["counted"]).sum() and (read[~chosen] == original[~chosen]).all()
    replaced = read != original  # a sampled original token is an original token
    assert 0 < replaced.sum() < chosen.sum()
    # The generator.
    nll = -logs(generator_logits(objective, params, inputs))
    at = np.nonzero(chosen)
    np.testing.assert_allclose(loss.terms["nll"][1], nll[(*at, original[at])].sum(), rtol=1e-5)
    assert loss.terms["nll"][0] == 1 and loss.terms["nll"][2] == chosen.sum()
    # The encoder, over the tokens that the generator sampled.
    states = objective.hidden(params, {**inputs, "tokens": jnp.asarray(read)}, None).tokens
    if form != "replace_mlm":
        p = sigmoid(objective.model.apply({"params": params["encoder"]}, states, method="replaced_logits"))
    if form in ("electra", "electra_15"):
        name, among, factor = "replaced", known if form == "electra" else chosen, 50
        values = -np.where(replaced, np.log(p), np.log(1 - p))
    else:
        probability = np.exp(np.take_along_axis(logs(logits_of(objective, params, states)), original[..., None], -1))
        probability = probability[..., 0]
        name, among, factor = "restored", known if form == "all_tokens_mlm" else chosen, 1
        if form == "all_tokens_mlm":
            probability = (1 - p) * (read == original) + p * probability
        values = -np.log(probability)
    assert set(loss.terms) == {"nll", name}
    assert loss.terms[name][0] == factor and loss.terms[name][2] == among.sum()
    np.testing.assert_allclose(loss.terms[name][1], values[among].sum(), rtol=1e-5)
    assert loss.metrics["replaced_share"] == (replaced.sum(), known.sum())


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_passes_through_the_samples(form):
    """The encoder's loss moves no parameter of the generator but the shared tables; both losses move those."""
    objective, batch, params = electra_of(form), tiny.batch(), electra_params(form)

    def term(params, name):
        return parts(objective, params, batch)[2].terms[name][1]

    (name,) = parts(objective, params, batch)[2].terms.keys() - {"nll"}
    of_encoder = jax.jit(jax.grad(lambda p: term(p, name)))(params)
    of_generator = jax.jit(jax.grad(lambda p: term(p, "nll")))(params)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(of_encoder["generator"]))
    assert np.abs(of_generator["generator"]["head_dense"]["kernel"]).max() > 0
    assert set(params["generator"]).isdisjoint(electra.SHARED)
    for part, leaf in (("embed", "embedding"), ("position_embed", "embedding"), ("embed_norm", "scale")):
        assert np.abs(of_encoder["encoder"][part][leaf]).max() > 0
        assert np.abs(of_generator["encoder"][part][leaf]).max() > 0
    stack = of_generator["encoder"]["stack"]
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(stack))


def test_samples_have_the_probabilities_of_the_read_out():
    count, places, ids = 4000, 3, 7
    rng = np.random.default_rng(0)
    hidden, kernel, bias = rng.normal(size=(places, 5)), rng.normal(size=(5, ids)), rng.normal(size=ids)
    whole = jnp.broadcast_to(jnp.asarray(hidden, jnp.float32), (count, places, 5))
    readout = Readout(whole, jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32), 2.0)
    keys = views.example_keys(KEY, count)
    drawn = np.asarray(jax.jit(lambda keys, x: electra.sample(keys, readout._replace(hidden=x)))(keys, whole))
    expected = np.exp(logs(2 * np.tanh(hidden @ kernel / 2) + bias))
    for place in range(places):
        share = np.bincount(drawn[:, place], minlength=ids) / count
        np.testing.assert_allclose(share, expected[place], atol=4 * 0.5 / np.sqrt(count))
    assert np.abs(np.corrcoef(drawn.T)[0, 1:]).max() < 0.06  # places are independent
    some = electra.sample(keys[5:9], readout._replace(hidden=whole[5:9]))
    np.testing.assert_array_equal(some, drawn[5:9])  # a function of the keys of the example


def test_the_generator_is_a_share_of_the_encoder():
    config = make("electra", model={**DISCRIMINATOR, "mlp_dim": 48}, generator=0.5)._generator_config
    assert (config.width, config.heads, config.mlp_dim, config.embedding_dim, config.depth) == (16, 2, 24, 32, 2)
    odd = make("electra", model={**DISCRIMINATOR, "width": 36, "heads": 9}, generator=0.3)._generator_config
    assert (odd.width, odd.heads) == (12, 3)
    with pytest.raises(UserError, match=r"objective.form: 'electra' needs a head for tokens; add 'replaced'"):
        make("electra", model=BERT)


def test_flops_of_generator_and_encoder():
    """The generator has its own stack; the encoder reads no token out, except in the forms that restore tokens."""
    of = {form: electra_of(form).flops(tiny.SPEC) for form in FORMS}
    encoder = electra_of("electra").model.flops(tokens=tiny.LENGTH)
    small = electra_of("electra").generator_model.flops(tokens=tiny.LENGTH, predicted=4)
    small += 4 * 2 * 32 * 64 / 3  # sampling reads out once more, without a backward pass
    head = 2 * tiny.LENGTH * 32 * 33
    assert of["electra"] == of["electra_15"] == pytest.approx(encoder + small + head)
    transform_and_table = 2 * (32 * 32 + 32 * 64)
    assert of["replace_mlm"] == pytest.approx(encoder + small + 4 * transform_and_table)
    assert of["all_tokens_mlm"] == pytest.approx(encoder + small + head + tiny.LENGTH * transform_and_table)


def test_pairs_of_a_window_are_of_its_first_text():
    """Windows have no segments: special tokens separate their texts, and no pair lies in two of them."""
    tokens = jnp.array([[2, 10, 11, 12, 13, 2, 20, 21, 22, 23, 24, 25]], jnp.int32)  # 2 ends a text
    objective = make(spec=WINDOWS, model=PAIR, pairs="order")
    assert objective._first_text({"tokens": tokens}).tolist() == [[-1, 10, 11, 12, 13, *[-1] * 7]]
    found = objective.views(views.example_keys(KEY, 1), {"tokens": jnp.tile(tokens, (1, 1))}, jnp.int32(0))
    assert set(np.array(restored(found))[0].tolist()) <= {0, 1, 2, 10, 11, 12, 13}


def test_a_text_beside_its_copy_is_not_apart():
    row = windows()["tokens"][:1]
    objective = make(spec=WINDOWS, model=PAIR, pairs="next")
    batch = objective.mixed(None, {"tokens": jnp.tile(row, (8, 1))}, jnp.int32(0))
    found = objective.views(views.example_keys(KEY, 8), batch, jnp.int32(0))
    assert not found["apart"].any() and objective.reads_other_rows
    assert not make(spec=WINDOWS, model=PAIR, pairs="order").reads_other_rows


@pytest.mark.parametrize("name", ["mlm", "electra"])
def test_a_tokenizer_without_a_mask_is_refused_at_once(name):
    spec = dataclasses.replace(tiny.SPEC, special_ids={"pad": 0})
    with pytest.raises(UserError, match="masked tokens need a mask token"):
        objectives.create(tiny.config(name), spec)


def test_rows_without_room_for_pairs_are_refused():
    spec = dataclasses.replace(WINDOWS, max_len=4)
    with pytest.raises(UserError, match=r"data\.seq_len: got 4, but pairs need 5 tokens at least"):
        make(spec=spec, model=PAIR, pairs="order")


@pytest.mark.parametrize("name", ["mlm", "electra", "masked_diffusion"])
@pytest.mark.parametrize("model", ["rnn", "word_vectors"])
def test_models_that_do_not_read_both_sides_are_refused(name, model):
    with pytest.raises(UserError, match=r"model\.name: \w+ reads no later tokens, but the objective predicts tokens"):
        make(name, model={"name": model, "width": 16})


@pytest.mark.parametrize(("share", "width", "heads"), [(1 / 3, 256, 4), (0.333, 256, 4), (0.25, 192, 3), (0.3, 232, 4)])
def test_widths_of_the_generator_are_divided_by_its_heads(share, width, heads):
    model = {"name": "bert", "preset": None, "width": 768, "depth": 1, "heads": 12, "extras": ("replaced",)}
    config = make("electra", model=model, generator=share)._generator_config
    assert (config.width, config.heads) == (width, heads)


def test_static_masks_are_those_of_the_text():
    """A text has as many masks as `masks`, whatever the step and its place; over texts, masks are as random as ever."""
    objective, batch = make(spec=WINDOWS, masks=2, rate=0.3), windows()
    view = jax.jit(lambda key, tokens: objective.views(views.example_keys(key, len(tokens)), {"tokens": tokens}, 0))
    seen = [set() for _ in range(tiny.BATCH)]
    for step in range(40):
        found = view(jax.random.key(step), jnp.roll(batch["tokens"], step, axis=0))["tokens"]
        for row, tokens in enumerate(np.roll(found, -step, axis=0)):
            seen[row].add(tuple(tokens.tolist()))
    assert all(len(masks) == 2 for masks in seen)
    many = jnp.asarray(np.random.default_rng(1).integers(4, 64, (6000, tiny.LENGTH)), jnp.int32)
    (fixed, again), drawn = (
        [np.asarray(view(jax.random.key(i), many)["tokens"] == 3) for i in (0, 1)],
        np.asarray(
            make(spec=WINDOWS, rate=0.3).views(views.example_keys(KEY, 6000), {"tokens": many}, 0)["tokens"] == 3
        ),
    )
    np.testing.assert_allclose(fixed.mean(0), drawn.mean(), atol=0.025)
    assert np.mean(np.all(fixed == again, axis=1)) == pytest.approx(0.5, abs=0.06)  # the same of two masks, by chance
    # Pairs of segments are drawn with the mask, so that a text has as many pairs, each with its mask.
    paired = make(spec=WINDOWS, model=PAIR, masks=2, rate=0.3, pairs="order")
    seen = [set() for _ in range(tiny.BATCH)]
    for step in range(20):
        keys = views.example_keys(jax.random.key(step), tiny.BATCH)
        found = jax.tree.map(np.asarray, paired.views(keys, batch, 0))
        for row in range(tiny.BATCH):
            seen[row].add((*found["tokens"][row].tolist(), *found["target"][row].tolist()))
    assert all(len(masks) == 2 for masks in seen)
    with pytest.raises(UserError, match=r"objective\.masks: 'next' pairs a text with another one at each visit"):
        make(spec=WINDOWS, model=PAIR, masks=2, pairs="next")
    one = make(spec=WINDOWS, masks=1)
    first, second = (one.views(views.example_keys(jax.random.key(i), 16), batch, 0)["tokens"] for i in (0, 1))
    np.testing.assert_array_equal(first, second)
