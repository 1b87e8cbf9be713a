"""Objectives of encoder-decoders: what is read and written, the loss token by token, modes, and one-line errors."""

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
from ssljax.layers.masks import Causal, Keys
from ssljax.objectives.base import still, views_of

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
