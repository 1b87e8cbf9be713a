"""Objectives on sounds: spectrograms on the device, views, masked patches, steps on a mesh, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from flax.core.meta import unbox

from ssljax import objectives, parallel, views
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError
from ssljax.evals.subjects import Programs, RawInput
from ssljax.objectives.base import Ctx, views_of
from ssljax.objectives.pictures import Showing
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program

RATE, SAMPLES = 1000, 240
ELEMENTS = {
    "audio": {"shape": [SAMPLES], "dtype": "float32"},
    "audio_length": {"shape": [], "dtype": "int32"},
    "label": {"shape": [], "dtype": "int32"},
}
SPEC = dataclasses.replace(tiny.SPEC, elements=ELEMENTS, streams={}, sample_rate=RATE)
AST = {"name": "ast", "preset": None, "width": 32, "depth": 2, "heads": 4, "patch_size": 4, "strides": [4, 4]}
AST |= {"spectrogram": {"window": 0.02, "mels": 9, "fmin": 0.0}, "mask_token": True}  # 23 frames
NORMAL = {"mean": [-4.0], "std": [3.0]}
VIEWS = {"augment": {"name": "audio_views"}, "projector": {"hidden": 32, "output": 16}}
SMALL = {
    "classification": {},
    "simclr": VIEWS,
    "byol": {**VIEWS, "predictor": {"hidden": 16}},
    "mae": {"decoder": {"width": 32, "depth": 1, "heads": 2}},
    "simmim": {},
    "data2vec": {"smallest": 2, "top_blocks": 2},
    "i_jepa": {"predictor": {"width": 32, "depth": 1, "heads": 2}},
}
MASKED = ("mae", "simmim", "data2vec", "i_jepa")


def make(name, spec=SPEC, model=None, **objective):
    groups = {"model": {**AST, **(model or {})}, "objective": {"name": name, **SMALL[name], **NORMAL, **objective}}
    return objectives.create(groups, spec, tiny.STEPS)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(40, SAMPLES + 1, tiny.BATCH)
    audio = rng.normal(size=(tiny.BATCH, SAMPLES)) * 0.1 * (np.arange(SAMPLES) < lengths[:, None])
    return {
        "audio": jnp.asarray(audio, jnp.float32),
        "audio_length": jnp.asarray(lengths, jnp.int32),
        "label": jnp.asarray(rng.integers(0, 5, tiny.BATCH), jnp.int32),
    }


def steps(name, mesh_shape=(1, 1, 1), microbatches=1):
    mesh = parallel.make_mesh(parallel.MeshConfig(*mesh_shape), jax.devices()[: int(np.prod(mesh_shape))])
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(optimizers.AdamW(learning_rate=1e-3), lambda step: 1.0, lengths)
    program = Program.build(make(name), optimization, mesh, batch(), microbatches)
    lines = []
    with parallel.mesh_context(mesh):
        state, step = program.jitted_init()(0), program.jitted_step()
        for i in range(2):
            state, metrics = step(state, program.put(batch(i)))
            lines.append({k: float(v) for k, v in metrics.items() if k.startswith("loss") or k == "grad_norm"})
    return lines


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("simclr", "mae") else pytest.mark.full) for n in SMALL]
)
def test_a_mesh_with_slices_equals_one_device(name):
    one, many = steps(name), steps(name, (2, 2, 2), 2)
    assert "loss" in one[0]
    for x, y in zip(one, many, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_allclose(x[key], y[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_prepare(name):
    """Spectrograms are those of the settings; masked patches lie in images [frequency, time] that patches tile."""
    objective, made = make(name), batch()
    prepared = objective.prepare(made)
    want = views.LogMel(window=0.02, mels=9, fmin=0.0)(made["audio"], RATE)
    assert want.shape == (tiny.BATCH, 23, 9)
    np.testing.assert_array_equal(prepared["spectrogram"], want)
    again = objective.prepare(prepared)
    assert all((again[key] == prepared[key]).all() for key in prepared)
    if name in MASKED:
        np.testing.assert_array_equal(prepared["image"][..., 0], np.swapaxes(want, 1, 2)[:, :8, :20])
        assert objective.shape == (8, 20, 1)
    assert objective.flops(SPEC) > 0


def test_views_of_sounds_are_those_of_the_pipeline():
    objective, made = make("simclr"), batch()
    key = jax.random.key(3)
    inputs = views_of(objective, key, made, jnp.int32(0))
    keys = views.example_keys(key, tiny.BATCH)
    log_mel = lambda x: views.LogMel(window=0.02, mels=9, fmin=0.0)(x, RATE)  # noqa: E731
    want = views.AudioViews()(keys, made["audio"], made["audio_length"], log_mel)
    np.testing.assert_allclose(inputs["spectrogram"], want, atol=1e-4)
    assert inputs["spectrogram"].shape == (tiny.BATCH, 2, 23, 9)


def test_the_error_of_masked_patches():
    """The loss of mae from the spectrogram, patch by patch; visible patches have no part in it."""
    objective, made = make("mae", normalize_targets=False, mask_ratio=0.5), batch()
    variables = objective.init(jax.random.key(0), made)
    params = unbox(variables.params)
    key = jax.random.key(1)
    inputs = views_of(objective, key, made, jnp.int32(0))
    ctx = Ctx(key, jnp.int32(0), jnp.arange(tiny.BATCH), train=False)
    out = np.asarray(objective.encode(params, {}, inputs, ctx))
    _, total, weight = objective.loss(params, {}, jnp.asarray(out), inputs, ctx).terms["mse"]
    sound = (np.asarray(objective.prepare(made)["spectrogram"], np.float64) + 4) / 3
    errors = []
    for b in range(tiny.BATCH):
        assert np.asarray(inputs["mask"][b]).sum() == 5
        for n in np.flatnonzero(inputs["mask"][b]):
            row, column = divmod(int(n), 5)  # of bands, of frames
            patch = sound[b, 4 * column : 4 * column + 4, 4 * row : 4 * row + 4].T
            errors.append(((out[b, n] - patch.ravel()) ** 2).mean())
    np.testing.assert_allclose(total / weight, np.mean(errors), rtol=1e-5)


def test_the_raw_control():
    objective, made = make("classification"), {k: np.asarray(v) for k, v in batch().items()}
    programs = Programs(objective, {"pooled"}, lambda x: x, 5, None)
    found = RawInput(programs).features("", {**made, "id": np.arange(tiny.BATCH)})["pooled"]
    sound = np.asarray(objective.prepare(batch())["spectrogram"])
    np.testing.assert_allclose(found, np.concatenate([sound.mean(1), sound.std(1)], 1), atol=1e-4)


@pytest.mark.parametrize("name", MASKED)
def test_pictures_are_visible(name):
    objective, made = make(name), batch()
    variables = unbox(objective.init(jax.random.key(0), made))
    found = objective.pictures(*variables, objective.prepare(made), Showing(jax.random.key(0), rows=2))
    (grid,) = found.values()
    assert len(grid.rows) == 2 and grid.caption.startswith("Held-out spectrograms")
    original = np.asarray(grid.rows[0][0].image)
    sound = np.asarray(objective.prepare(made)["image"])[0, ::-1]
    np.testing.assert_allclose(original, np.clip(0.5 + (sound + 4) / 12, 0, 1), atol=1e-5)
    shown = np.array([[tile.image for tile in row] for row in grid.rows])
    assert shown.min() >= 0 and shown.max() <= 1


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("simclr", {"augment": {"name": "two_views"}}, r"^objective\.augment\.name: must be 'audio_views' for a model"),
        ("mae", {"model": {"strides": [3, 4]}}, r"^model\.strides: got \(3, 4\), must be \(4, 4\), as patch_size"),
        ("mae", {"mean": [0.0, 1.0]}, r"^objective\.mean: got 2 values .* spectrograms have 1 channel \(1 required\)"),
        ("mae", {"model": {"patch_size": 10}}, r"^model\.patch_size: got 10, must be at most the 23 frames and the 9"),
        (
            "classification",
            {"model": {"spectrogram": {"fmax": 501.0}}},
            r"^model\.spectrogram\.fmax: got 501\.0, must be fmin < fmax <= 500",
        ),
    ],
)
def test_errors(name, keys, message):
    with pytest.raises(UserError, match=message):
        make(name, **keys)


@pytest.mark.parametrize("name", ["classification", "mae"])
def test_spectrograms_of_the_data_come_before_sounds(name):
    elements = {**ELEMENTS, "spectrogram": {"shape": [23, 9], "dtype": "float32"}}
    objective = make(name, dataclasses.replace(SPEC, elements=elements))
    made = {**batch(), "spectrogram": jnp.ones((tiny.BATCH, 23, 9))}
    np.testing.assert_array_equal(objective.prepare(made)["spectrogram"], made["spectrogram"])
    with pytest.raises(UserError, match=r"objective\.augment: has no effect on spectrograms, which are not augmented"):
        make("simclr", dataclasses.replace(SPEC, elements=elements), {"dropout": 0.1})
    views_of_two = make(
        "simclr", dataclasses.replace(SPEC, elements=elements), {"dropout": 0.1}, augment={"name": "two_views"}
    )
    inputs = views_of(views_of_two, jax.random.key(0), made, jnp.int32(0))
    np.testing.assert_array_equal(inputs["spectrogram"], jnp.ones((tiny.BATCH, 2, 23, 9)))


def test_the_scale_of_pixels_is_warned_of(caplog):
    make("classification")
    assert not caplog.records
    make("classification", mean=[0.5], std=[0.25])
    assert "which are for pixels; log-mel spectrograms of sounds have about -9 and 5" in caplog.text
