"""Pictures of the task: what each objective shows, their drawing, and their place in a workdir and its report."""

import dataclasses
import functools
import io
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives
from PIL import Image
from sklearn.metrics import confusion_matrix

from ssljax import objectives, run, runs, views
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Grid, Texts, Tile
from ssljax.evals.pictures import confusion, nearest, neighbours
from ssljax.objectives.base import still, stream, views_of
from ssljax.objectives.pictures import MASK, Showing, marked, pieces
from ssljax.objectives.two_view import TwoView
from ssljax.report import pictures as drawing
from ssljax.runs.pictures import pictures as make_pictures

KEY = stream(jnp.uint32(0), 0, "pictures")
ROWS = 3


def decode(ids):
    """Words "w7" with spaces between them; special tokens are left out."""
    return " ".join(f"w{int(i)}" for i in ids if int(i) > 3)


def generated(prompts, count, start):
    return [np.arange(10, 10 + count, dtype=np.int32) for _ in prompts]


@functools.cache
def shown(name):
    """The objective, its variables, a prepared batch and its pictures."""
    objective, batch = tiny_objectives.make(name), tiny_objectives.batch()
    rng = np.random.default_rng(0)  # not `init`, which would take most of the time to compile
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0), batch))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.05, 0.2, leaf.shape), leaf.dtype), shapes)
    batch = objective.prepare(batch)
    found = objective.pictures(*variables, batch, Showing(KEY, ROWS, decode, generated))
    return objective.unwrapped, variables, batch, found


TWO_VIEWS = [name for name in objectives.REGISTRY if issubclass(objectives.REGISTRY.get(name), TwoView)]
EXPECTED = {  # name of the picture, and its columns or the labels of its texts
    "captioning": ("captions", ()),
    "causal_lm": ("samples", ("prompt", "continuation", "true continuation")),
    "image_gpt": ("samples", ("original", "seen", "completed")),
    "prefix_lm": ("samples", ("prompt", "continuation", "true continuation")),
    "classification": ("views", ("original", "view")),
    "clip": ("captions", ()),
    "dino": ("views", ("original", *(f"{s} crop {i}" for s in ("large", "small") for i in (1, 2)))),
    "mae": ("reconstruction", ("original", "masked", "reconstruction")),
    "electra": ("samples", ("generated", "found", "truth")),
    "mlm": ("samples", ("masked", "guess", "truth")),
    "masked_diffusion": ("samples", ("masked", "guess", "truth")),
    "siglip": ("captions", ()),
    "autoencoder": ("reconstruction", ("original", "input", "reconstruction")),
    "vae": ("reconstruction", ("original", "reconstruction")),
    "fusion": ("reconstruction", ("original", "masked", "reconstruction")),
    "msn": ("views", ("original", "target", *(f"anchor {i}" for i in (1, 2, 3)))),
    "colorization": ("colours", ("original", "grey", "coloured")),
    "distillation": ("views", ("original", "view")),
    "deep_cluster": ("views", ("original", "view")),
    "data2vec": ("masks", ("original", "masked")),
    "i_jepa": ("masks", ("original", "masked")),
    "rotation": ("views", ("original", *(f"view {i}" for i in (1, 2, 3, 4)))),
    "jigsaw": ("views", ("original", *(f"view {i}" for i in (1, 2, 3, 4)))),
    "relative_patch": ("views", ("original", "view 1", "view 2")),
    "fixmatch": ("views", ("original", "labelled", "weak", "strong")),
    "mean_teacher": ("views", ("original", "labelled", "student", "teacher")),
    **dict.fromkeys(("pseudo_label", "regression"), None),  # without augmentation
    "cpc": None,  # without augmentation
    "multi_label": None,  # texts are not augmented
    "ibot": ("views", ("original", *(f"{s} crop {i}" for s in ("large", "small") for i in (1, 2)))),
    "simmim": ("masks", ("original", "masked")),
    **dict.fromkeys(TWO_VIEWS, ("views", ("original", "view 1", "view 2"))),
    "xlnet": ("samples", ("hidden", "guess", "truth")),
    "word2vec": ("samples", ("word", "nearest words")),
    "simcse": None,  # texts are not augmented
    **dict.fromkeys(tiny_objectives.SEQUENCES, ("samples", ("input", "guess", "truth"))),
    "graph_cl": None,  # graphs have no pictures
    "swav": ("views", ("original", *(f"{s} crop {i}" for s in ("large", "small") for i in (1, 2)))),
}


@pytest.mark.parametrize("name", list(objectives.REGISTRY))
def test_every_objective_shows_its_task(name):
    assert name in EXPECTED, "an objective without a row here is not tested"
    *_, found = shown(name)
    if EXPECTED[name] is None:
        assert found == {}
        return
    picture, titles = EXPECTED[name]
    assert list(found) == [picture]
    exhibit = found[picture]
    assert exhibit.heading and exhibit.caption.endswith(".")
    if isinstance(exhibit, Texts):
        assert 0 < len(exhibit.examples) <= 4
        for example in exhibit.examples:
            assert tuple(label for label, _ in example) == titles and all(text for _, text in example)
        return
    assert isinstance(exhibit, Grid) and tuple(exhibit.columns) == titles
    tiles = [tile for row in exhibit.rows for tile in row]
    assert len(tiles) == ROWS * (len(titles) or 1)
    for tile in tiles:
        assert tile.image.ndim == 3 and tile.image.shape[-1] == 3
        assert np.isfinite(tile.image).all() and tile.image.min() >= 0 and tile.image.max() <= 1
    content = drawing.files(found)[f"{picture}.png"]
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.std() > 0


def test_views_stand_beside_their_originals():
    objective, _, batch, found = shown("simclr")
    made = jax.jit(functools.partial(views_of, objective))(KEY, batch, jnp.int32(0))["image"]
    for row, tiles in enumerate(found["views"].rows):
        np.testing.assert_allclose(tiles[0].image, tiny_objectives.batch()["image"][row] / 255, atol=1e-6)
        for view in (0, 1):
            np.testing.assert_allclose(tiles[1 + view].image, made[row, view], atol=1e-5)
    plain = tiny_objectives.make("classification")
    plain = plain.held_out()  # without augmentation there is nothing to see
    assert plain.pictures(None, None, batch, Showing(KEY, ROWS)) == {}


def test_reconstruction_by_its_definition():
    """Visible patches are those of the image; the others have the mean and the variance of the true ones."""
    objective, (params, extra), batch, found = shown("mae")
    inputs = jax.jit(functools.partial(views_of, objective.held_out()))(KEY, batch, jnp.int32(0))
    predicted = np.asarray(jax.jit(objective.encode)(params, extra, inputs, still(KEY, batch)), np.float64)
    for row, (original, masked, whole) in enumerate(found["reconstruction"].rows):
        image = np.asarray(batch["image"][row], np.float64)
        np.testing.assert_allclose(original.image, image, atol=1e-6)
        for number, hidden in enumerate(np.asarray(inputs["mask"][row])):
            y, x = 4 * (number // 2), 4 * (number % 2)
            patch = image[y : y + 4, x : x + 4]
            seen, made = masked.image[y : y + 4, x : x + 4], whole.image[y : y + 4, x : x + 4]
            if not hidden:
                np.testing.assert_allclose(seen, patch, atol=1e-5)
                np.testing.assert_allclose(made, patch, atol=1e-5)
                continue
            assert (seen == 0.5).all()
            normalised = (patch - 0.5) / 0.25
            values = predicted[row, number].reshape(4, 4, 3) * np.sqrt(normalised.var(ddof=1) + 1e-6)
            values = values + normalised.mean()
            np.testing.assert_allclose(made, np.clip(values * 0.25 + 0.5, 0, 1), atol=1e-4)


def test_simmim_restores_pixels():
    """Masked patches have the predicted pixels, the others those of the image."""
    objective = tiny_objectives.make("simmim")
    objective = dataclasses.replace(objective.unwrapped, target="pixels")
    batch = objective.prepare(tiny_objectives.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    found = objective.pictures(params, extra, batch, Showing(KEY, ROWS))
    assert list(found) == ["reconstruction"] and len(found["reconstruction"].columns) == 3
    inputs = jax.jit(functools.partial(views_of, objective.held_out()))(KEY, batch, jnp.int32(0))
    outputs = jax.jit(objective.encode)(params, extra, inputs, still(KEY, batch))
    predicted = np.asarray(outputs["predicted"], np.float64)
    for row, (original, masked, whole) in enumerate(found["reconstruction"].rows):
        for number, hidden in enumerate(np.asarray(outputs["mask"][row])):
            y, x = 4 * (number // 2), 4 * (number % 2)
            at = slice(y, y + 4), slice(x, x + 4)
            made = np.clip(predicted[row, number].reshape(4, 4, 3) * 0.25 + 0.5, 0, 1) if hidden else original.image[at]
            np.testing.assert_allclose(whole.image[at], made, atol=1e-4)
            np.testing.assert_allclose(masked.image[at], 0.5 if hidden else original.image[at], atol=1e-5)


def test_unnormalize_is_the_inverse_of_normalize():
    x = jax.random.uniform(KEY, (2, 3, 12))
    np.testing.assert_allclose(views.unnormalize_patches(views.normalize_patches(x), x), x, atol=1e-5)
    images = x.reshape(2, 3, 4, 3)
    mean, std = (0.1, 0.5, 0.2), (0.3, 0.1, 1.0)
    np.testing.assert_allclose(views.unnormalize(views.normalize(images, mean, std), mean, std), images, atol=1e-6)


def test_captions_are_the_most_similar_ones(monkeypatch):
    objective, variables, batch, _ = shown("clip")
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(16, 4)).astype(np.float32) * rng.uniform(1, 9) for name in ("image", "text")}
    features["text"][1] = 3 * features["image"][1]
    monkeypatch.setattr(type(objective), "features", lambda *_: {k: jnp.asarray(v) for k, v in features.items()})
    found = objective.pictures(*variables, batch, Showing(KEY, 5, decode))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    tiles = [tile for row in found["captions"].rows for tile in row]
    texts = [decode(t[s == s[0]]) for t, s in zip(np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"]))]
    for i, tile in enumerate(tiles):
        best = max(range(16), key=lambda j: cosine(features["image"][i], features["text"][j]))
        assert tile.text.splitlines()[0] == texts[best] and tile.right == (best == i)
        assert tile.right or tile.text.splitlines()[1] == f"(true: {texts[i]})"
    assert {tile.right for tile in tiles} == {True, False} and len(tiles) == 5


def test_samples_continue_the_first_half_of_held_out_texts():
    *_, batch, found = shown("causal_lm")
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"])
    whole = [decode(t[s == 1]) for t, s in zip(tokens, segments) if (s == 1).sum() > 3]
    for text, example in zip(whole, found["samples"].examples):
        words = dict(example)
        assert f"{words['prompt']} {words['true continuation']}" == text
        assert words["continuation"] == decode(range(10, 16))


def test_masked_words_stand_in_brackets():
    *_, batch, found = shown("mlm")
    for row, example in enumerate(found["samples"].examples):
        words = dict(example)
        text = decode(np.asarray(batch["tokens"])[row])
        assert words["truth"].replace("[", "").replace("]", "") == text
        hidden = [word.startswith("[") for word in words["truth"].split()]
        assert any(hidden) and [word == MASK for word in words["masked"].split()] == hidden
        assert words["guess"].count("[") == sum(hidden)  # a special token, such as padding, is "[]"


def test_hidden_spans_fit_their_numbers():
    objective, _, batch, found = shown("span_corruption")
    for row, example in enumerate(found["samples"].examples):
        words = dict(example)
        spans, at = {}, None
        for word in words["truth"].split():
            at = word if word.startswith("[") else at
            spans.setdefault(at, []).extend([] if word.startswith("[") else [word])
        filled = " ".join(" ".join(spans.get(word, [word])) for word in words["input"].split())
        assert filled == decode(np.asarray(batch["tokens"])[row][np.asarray(batch["segment_ids"])[row] > 0])
    assert objective.readable(decode, [71, 5, 6, 70, 7]) == "[1] w5 w6 [2] w7"


def test_pieces_of_words_and_of_letters():
    vocabulary = {1: "un", 2: "##seen", 3: "word", 4: "##s"}
    joined = lambda ids: " ".join(vocabulary[i] for i in ids).replace(" ##", "")  # noqa: E731
    assert pieces(joined, [1, 2, 3], {}) == ["un", "seen", " word"]
    assert marked(joined, [1, 2, 3], [1], {1: 4}) == "un[s] word"
    assert marked(joined, [1, 2, 3], [1, 2], None) == f"un{MASK} {MASK}"
    letters = lambda ids: bytes(ids).decode("utf-8", errors="replace")  # noqa: E731
    assert marked(letters, list("zoë!".encode()), [4], {4: 63}) == "zoë[?]"
    assert pieces(letters, list(b"ab"), {0: 99}) == ["c", "b"]
    assert marked(letters, list(b"a b"), [1], {1: 32}) == "a[ ]b"


def test_confusion_matrix_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 100), rng.integers(0, 5, 100)
    found = confusion(labels, predicted, 5)
    np.testing.assert_array_equal(found.counts, confusion_matrix(labels, predicted, labels=range(5)))
    assert f"{(labels == predicted).mean():.1%} are right" in found.caption and found.names == list("01234")


def test_neighbours_against_brute_force():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    images = rng.integers(0, 256, (30, 2, 2, 1)).astype(np.uint8)
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    for query, rows in zip((3, 8), nearest(x, [3, 8], 5)):
        others = sorted(set(range(30)) - {query}, key=lambda j: -cosine(x[query], x[j]))
        assert rows.tolist() == others[:5]
    grid = neighbours(x, images, labels, ("a", "b", "c"), queries=3)
    assert sorted(row[0].text for row in grid.rows) == ["a", "b", "c"], "as many classes as possible"
    for row in grid.rows:
        assert [tile.right for tile in row[1:]] == [tile.text == row[0].text for tile in row[1:]] and len(row) == 6
    assert all(tile.right is None for row in neighbours(x, images).rows for tile in row)
    assert len(neighbours(x[:3], images[:3]).rows[0]) == 3


def test_grids_have_frames_and_keep_pixels():
    image = np.zeros((2, 2, 1))
    image[0, 0] = 1
    grid = Grid("A", "B: ü.", [[Tile(image, "some words " * 9, True), Tile(image, "", False)]], ("one", "two"))
    pixels = np.asarray(Image.open(io.BytesIO(drawing.draw(grid))))
    (top, left), *_ = np.argwhere((pixels == (0, 158, 115)).all(-1))
    assert (pixels[top + 3 : top + 51, left + 3 : left + 51] == 255).all(), "a small image keeps sharp pixels"
    assert (pixels[top + 51 : top + 99, left + 3 : left + 99] == 0).all()
    assert (pixels == (213, 94, 0)).all(-1).any()
    tall = Grid("A", "B.", [[Tile(image)] * 3] * 5, ("a", "b", "c"))
    pixels = np.asarray(Image.open(io.BytesIO(drawing.draw(tall))))
    assert pixels.shape[1] > 6 * 96 and 3 * 96 < pixels.shape[0] < 4 * 96 + 50, "two examples in a row"


CONFIG = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": "classification"},
    "data": {"source": "builtin:digits"},
    "optimizer": {"name": "adamw"},
    "evals": {"knn": {"max_examples": 64, "k": 5}},
    "mesh": {"data": 8},
    "steps": 2,
    "batch_size": 32,
    "log": {"progress": False},
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run.train(CONFIG, folder)
    return folder


def test_a_run_has_its_pictures_in_the_report_and_in_trackers(workdir):
    assert {path.name for path in workdir.glob("pictures/*")} == {"confusion.png", "neighbours.png"}
    assert "left out" not in (workdir / "log.txt").read_text()
    page = (workdir / "report.html").read_text()
    for heading, uri, caption in drawing.read(workdir / "pictures").figures:
        assert f"<h2>{heading}</h2>" in page and uri in page and caption in page
    assert b"pictures/confusion" in next(workdir.glob("events*")).read_bytes()


def test_an_evaluation_draws_the_same_pictures(workdir):
    before = {path.name: path.read_bytes() for path in workdir.glob("pictures/*")}
    for path in workdir.glob("pictures/*"):
        path.unlink()
    runs.evaluate(workdir)
    assert {path.name: path.read_bytes() for path in workdir.glob("pictures/*")} == before


def test_texts_of_a_run_are_a_block_of_the_report(tmp_path):
    texts = Texts("Samples", "Made <up>.", [[("prompt", "a <b>"), ("continuation", " c\nd")]])
    for name, content in drawing.files({"samples": texts}).items():
        (tmp_path / name).write_bytes(content)
    assert drawing.read(tmp_path).texts == [json.loads(json.dumps(texts._asdict()))]
    from ssljax.report.page import fill
    from ssljax.report.table import evaluation_table

    shown = drawing.read(tmp_path).texts
    page = fill(
        title="",
        facts=[],
        table_heading="",
        table=evaluation_table([]),
        sections=[],
        runs={},
        texts=shown,
        config="",
    )
    assert "<dt>prompt</dt><dd>a &lt;b&gt;</dd>" in page and "<dd> c\nd</dd>" in page and "Made &lt;up&gt;." in page


@pytest.mark.parametrize("name", ["samples.json", "a.png"])
def test_a_damaged_file_is_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(UserError, match=rf"{name}: not a readable picture or text of a run"):
        drawing.read(tmp_path)


def test_pictures_that_fail_cost_no_run(monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr("ssljax.runs.pictures._of_objective", fail)
    monkeypatch.setattr("ssljax.runs.pictures._confusion", fail)
    embedding = {"features": np.eye(3), "images": np.zeros((3, 2, 2, 1), np.uint8), "label": np.arange(3)}
    run_of = types.SimpleNamespace(spec=types.SimpleNamespace(classes=None))
    assert list(make_pictures(run_of, None, {}, {}, embedding)) == ["neighbours"]
    assert caplog.text.count("pictures are left out: RuntimeError: no memory") == 2
