"""Objectives that read a text and write another: the loss token by token, of encoder-decoders and of decoders, what is
read and written, modes, and one-line errors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.data.tokenizers import ByteTokenizer, ends_sentence
from ssljax.evals.generation import Sampling, generate
from ssljax.layers.masks import Causal, Keys, Prefix, is_causal
from ssljax.objectives.base import still, views_of
from ssljax.objectives.pictures import Showing

KEY = jax.random.key(0)


def made(name, **settings):
    return dataclasses.replace(tiny.make(name, dropout=0.0), **settings)


@pytest.mark.parametrize("name", tiny.SEQUENCES[1:])
def test_loss_is_the_mean_over_written_tokens(name):
    """Logits of the whole decoder in float64; padding of inputs and of targets is left out."""
    objective, batch = made(name), tiny.batch()
    params = jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    assert (inputs["tokens"].shape[1], inputs["target"].shape[1]) == objective.lengths(tiny.SPEC)
    ctx = still(KEY, batch)
    loss = objective.loss(params, {}, objective.encode(params, {}, inputs, ctx), inputs, ctx)

    @jax.jit
    def logits_of(inputs):
        model, of = objective.model, {"params": params["encoder"]}
        start = jnp.full((tiny.BATCH, 1), model.config.decoder_start)
        memory = model.apply(of, inputs["tokens"], mask=Keys(inputs["valid"]), method="encode").tokens
        before = jnp.concatenate([start, inputs["target"][:, :-1]], axis=1)
        options = {"mask": Causal(), "memory_mask": Keys(inputs["valid"]), "method": "decode"}
        return model.apply(of, model.apply(of, before, memory, **options).tokens, method="logits")

    padded = {**inputs, "tokens": jnp.where(inputs["valid"], inputs["tokens"], 9)}
    logits = np.asarray(logits_of(padded), np.float64)
    own = np.take_along_axis(logits, np.asarray(inputs["target"])[..., None], 2)[..., 0]
    nll, counted = np.log(np.exp(logits).sum(-1)) - own, np.asarray(inputs["counted"])
    _, total, count = loss.terms["nll"]
    assert count == counted.sum() > 0
    np.testing.assert_allclose(total, nll[counted].sum(), rtol=1e-5)
    if name == "mixture_of_denoisers":
        for number, mode in enumerate("RSX"):
            rows = np.asarray(inputs["mode"]) == number
            np.testing.assert_allclose(loss.metrics[f"nll_{mode}"][0], nll[rows][counted[rows]].sum(), rtol=1e-4)
            assert loss.metrics[f"nll_{mode}"][1] == counted[rows].sum()


def decoder(name, dropout=0.0, **settings):
    """The objective with a decoder, whose positions are learned."""
    model = {"name": "gpt", "preset": None, "width": 32, "depth": 2, "heads": 4, "vocab_size": 80, "dropout": dropout}
    return dataclasses.replace(tiny.make(name, **model), **settings)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", tiny.SEQUENCES)
def test_a_decoder_writes_after_what_it_has_read(name, bidirectional):
    """Each written token is predicted by a pass over the tokens before it alone: all that is read, then the written."""
    objective, batch = decoder(name, bidirectional=bidirectional), tiny.batch()
    params = jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params
    inputs = jax.tree.map(np.asarray, views_of(objective, KEY, batch, jnp.int32(0)))
    ctx = still(KEY, batch)
    loss = objective.loss(params, {}, objective.encode(params, {}, inputs, ctx), inputs, ctx)
    rows = [
        (list(read[ok]), list(written[counts]))
        for read, ok, written, counts in zip(*(inputs[key] for key in ("tokens", "valid", "target", "counted")))
    ]
    size = max(len(read) + len(written) for read, written in rows)
    assert size <= sum(objective.lengths(tiny.SPEC)) == objective.model.config.max_len

    @jax.jit
    def logits_after(tokens, length, prefix):
        mask = Prefix(prefix) if bidirectional else Causal()
        seen = jnp.where(jnp.arange(size) < length, tokens, 0)
        hidden = objective.model.apply({"params": params["encoder"]}, seen[None], mask=mask).tokens[0, length - 1]
        return objective.model.apply({"params": params["encoder"]}, hidden, method="logits")

    total, count, right = 0.0, 0, 0
    for read, written in rows:
        tokens = jnp.asarray((read + written + [0] * size)[:size])
        for place in range(len(read), len(read) + len(written)):
            if place:
                logits = np.asarray(logits_after(tokens, place, len(read)), np.float64)
                total += np.log(np.exp(logits).sum()) - logits[tokens[place]]
                right += logits.argmax() == tokens[place]
                count += 1
    assert float(loss.terms["nll"][2]) == count > 0 and float(loss.metrics["accuracy"][0]) == right
    np.testing.assert_allclose(loss.terms["nll"][1], total, rtol=1e-5)


def test_a_decoder_reads_in_both_directions_and_writes_in_one():
    """Changing a token moves the states that see it; the state of the last token that is read predicts the first."""
    objective, batch = decoder("span_corruption"), tiny.batch()
    params = jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    row = int(np.argmax(inputs["valid"].sum(1)))
    read, written = int(inputs["valid"][row].sum()), int(inputs["counted"][row].sum())
    for both in (True, False):
        form = dataclasses.replace(objective, bidirectional=both)
        run = jax.jit(lambda i, form=form: form.encode(params, {}, i, still(KEY, batch)))
        whole = run(inputs)[row]
        for name, count in (("tokens", read), ("target", written)):
            for at in range(count):
                other = {**inputs, name: inputs[name].at[row, at].set((inputs[name][row, at] + 1) % 80)}
                moved = np.abs(run(other)[row] - whole).max(-1) > 1e-6
                seen = np.arange(len(moved)) >= (0 if name == "tokens" else at + 1)
                assert moved[:written].tolist() == seen[:written].tolist()
    text = {"tokens": batch["tokens"], "segment_ids": jnp.ones_like(batch["segment_ids"])}
    changed = {**text, "tokens": text["tokens"].at[:, -1].add(1)}
    for both in (True, False):
        features = dataclasses.replace(objective, bidirectional=both).features
        moved = np.abs(features(params, {}, text)["tokens"] - features(params, {}, changed)["tokens"])[:, 0] > 1e-6
        assert moved.any() == both


@pytest.mark.parametrize("name", ["span_corruption", "text_infilling"])
def test_gradients_of_a_decoder_in_slices(name):
    tiny.check_slices(decoder(name, dropout=0.1))


def test_what_a_decoder_writes_is_shown():
    """Greedy or not, the prompts and the new tokens fit into the positions of the model."""
    objective, batch = decoder("span_corruption"), tiny.batch()
    params = jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params
    asked = []

    def write(prompts, count, start):
        asked.append((max(map(len, prompts)) + count, tuple(start)))
        return generate(objective.model, params["encoder"], prompts, Sampling(count), prefix=objective.prefixed)

    show = Showing(KEY, 4, lambda ids: " ".join(map(str, ids)), write)
    (samples,) = objective.pictures(params, {}, batch, show).values()
    assert len(samples.examples) == 4 and all(dict(example)["truth"] for example in samples.examples)
    assert asked[0][0] <= objective.model.config.max_len and asked[0][1] == ()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_prompts_and_exports_know_how_a_model_attends(bidirectional):
    assert not is_causal(made("span_corruption").attention) and not made("span_corruption").prefixed
    objective = decoder("span_corruption", bidirectional=bidirectional)
    assert is_causal(objective.attention) and objective.prefixed == bidirectional


def test_a_decoder_predicts_nothing_from_nothing():
    """If all tokens of a text are left out, its first token has no weight; an encoder-decoder can still predict it."""
    inputs = {
        "tokens": jnp.zeros((2, 3), jnp.int32),
        "valid": jnp.array([[False] * 3, [True, False, False]]),
        "target": jnp.full((2, 3), 5),
        "counted": jnp.array([[True] * 3, [True, True, False]]),
    }
    assert decoder("text_infilling").written(inputs).tolist() == [[False, True, True], [True, True, False]]
    assert made("text_infilling").written(inputs).tolist() == inputs["counted"].tolist()


def test_corruptions_of_infilling():
    batch, mask = tiny.batch(), tiny.SPEC.special_ids["mask"]
    whole = np.asarray(batch["tokens"])
    read = lambda *names: jax.jit(  # noqa: E731
        lambda: views_of(made("text_infilling", corruptions=names), KEY, batch, jnp.int32(0))
    )()
    for names in (("masking",), ("deletion",), ("rotation", "permutation"), ("infilling", "permutation")):
        inputs = jax.tree.map(np.asarray, read(*names))
        assert (inputs["target"] == whole).all() and (inputs["counted"] == (np.asarray(batch["segment_ids"]) > 0)).all()
        lost = [
            set(a[a > 3].tolist()) - set(b[ok].tolist()) for a, b, ok in zip(whole, inputs["tokens"], inputs["valid"])
        ]
        masks, hidden = (inputs["tokens"] == mask).sum(), sum(map(len, lost))
        assert (masks > 0) == ("masking" in names or "infilling" in names)
        assert (hidden > 0) == ("rotation" not in names)
        if names == ("masking",):
            others = inputs["tokens"] != mask
            assert (inputs["tokens"][others] == whole[others]).all()


def test_shares_and_modes_of_denoisers():
    """The first token names the mode; modes have their shares, denoisers of a mode equal ones."""
    rows = 6_000
    batch = {"tokens": jnp.tile(jnp.arange(4, 16), (rows, 1))}
    for shares, wanted in ((None, (2 / 7, 1 / 7, 4 / 7)), ((2.0, 1.0, 1.0), (0.5, 0.25, 0.25))):
        objective = made("mixture_of_denoisers", shares=shares)
        inputs = jax.tree.map(np.asarray, jax.jit(lambda o=objective: views_of(o, KEY, batch, jnp.int32(0)))())
        found = np.bincount(inputs["mode"], minlength=3) / rows
        np.testing.assert_allclose(found, wanted, atol=5 * np.sqrt(0.25 / rows))
        assert (inputs["tokens"][:, 0] == 77 + inputs["mode"]).all() and inputs["valid"][:, 0].all()
        end = inputs["mode"] == 1
        assert (inputs["tokens"][end, 1:11] == [*range(4, 13), 76]).all()
        assert (inputs["target"][end, :5] == [76, 13, 14, 15, 75]).all()
        hidden = ((inputs["target"] < 64) & inputs["counted"]).sum(1)
        assert set(hidden[inputs["mode"] == 0]) == {2} and set(hidden[inputs["mode"] == 2]) == {2, 6}
        assert objective.readable(lambda ids: str(list(ids)), [77, 4, 76, 5, 75]) == "[R] [4] [1] [5] [2]"


def test_ends_of_sentences():
    assert ByteTokenizer().sentence_ends == tuple(map(ord, "!.?"))
    ends = ("word.", "?", '."', ".)\n", "!\u201d", "...")
    assert all(map(ends_sentence, ends)) and not any(map(ends_sentence, ("", " ", '"', ".a", ",", "(", "\u201c")))


@pytest.mark.parametrize(
    ("name", "change", "settings", "message"),
    [
        ("text_infilling", {"special_ids": {"pad": 0}}, {}, "objective.name: this objective needs a mask token"),
        ("text_infilling", {"sentence_ends": ()}, {}, "no token of data.tokenizer ends one"),
        ("gap_sentences", {"sentence_ends": ()}, {}, "no token of data.tokenizer ends one"),
        ("gap_sentences", {"special_ids": {"pad": 0, "mask": 3}}, {}, "needs an end token"),
        ("gap_sentences", {}, {"target_len": 13}, "objective.target_len: got 13, must be at most the 12 tokens"),
        ("mixture_of_denoisers", {"vocab_size": 76}, {}, "leaves no room for 6 sentinels and modes"),
        ("mixture_of_denoisers", {}, {"regular": ((1.5, 3.0),)}, "regular: got"),
        ("text_infilling", {}, {"corruptions": ()}, "corruptions: got"),
        ("text_infilling", {}, {"corruptions": ("masking", "masking")}, "corruptions: got"),
    ],
)
def test_errors_are_one_line(name, change, settings, message):
    groups = tiny.config(name)
    groups["objective"] |= settings
    with pytest.raises(UserError, match=message) as found:
        objectives.create(groups, dataclasses.replace(tiny.SPEC, **change), tiny.STEPS)
    assert "\n" not in str(found.value)


def test_corruptions_need_only_what_they_use():
    spec = dataclasses.replace(tiny.SPEC, special_ids={"pad": 0}, sentence_ends=())
    groups = tiny.config("text_infilling")
    groups["objective"] |= {"corruptions": ("deletion", "rotation")}
    objective = objectives.create(groups, spec, tiny.STEPS)
    inputs = objective.views(views.example_keys(KEY, tiny.BATCH), tiny.batch(), jnp.int32(0))
    assert inputs["tokens"].shape == (tiny.BATCH, tiny.LENGTH)


def test_a_target_that_was_cut_has_no_end_mark():
    objective = tiny.make("gap_sentences")
    end = objective.special_ids[-1]
    whole, cut = np.array([10, 4, end]), np.array([10, 4, 11])
    assert objective._ends(whole) and not objective._ends(cut)
    assert objective._guessed(np.array([10, 11, 12, 13]), cut).tolist() == [10, 11, 12]
    assert objective._guessed(np.array([10, end, 12]), whole).tolist() == [10]
