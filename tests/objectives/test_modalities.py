"""Objectives and the inputs that they declare: a step of every cell of `ssljax list objectives --matrix`."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import at_most

from ssljax import cli, models, objectives, parallel
from ssljax.base.durations import RunLengths
from ssljax.objectives.two_view import TwoView
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program

CELLS = [(objective, inputs) for objective, cells in objectives.modalities().items() for inputs in cells]
SOUND = {"shape": [24, 16], "dtype": "float32"}
SPEC = dataclasses.replace(tiny.SPEC, elements={**tiny.SPEC.elements, "spectrogram": SOUND})
ENCODERS = {
    "images": tiny.CONFIGS["simclr"]["model"],
    "tokens": {"name": "bert", "pool": "mean", "preset": None, "width": 32, "depth": 2, "heads": 4, "dropout": 0.1},
    "spectrograms": {
        **{"name": "ast", "preset": None, "width": 32, "depth": 2, "heads": 4, "dropout": 0.1},
        **{"patch_size": 4, "strides": [4, 4], "mask_token": True},
    },
    "graphs": {"name": "gin", "width": 32, "depth": 2, "dropout": 0.1},
    "sequences": {"name": "t5", "preset": None, "width": 32, "depth": 2, "heads": 4, "dropout": 0.1},
}
# Objectives whose smallest config for other inputs has other settings.
OTHERS = {
    ("fusion", "tokens"): {
        "name": "fusion",
        "parts": {"words": {"name": "mlm"}, "views": {"name": "simcse", "projector": {"output": 16}}},
    },
    ("cpc", "spectrograms"): {
        "name": "cpc",
        "part": 16,
        "stride": 4,
        "ahead": 2,
        "context": {"width": 32, "depth": 1, "heads": 2},
    },
    ("fusion", "graphs"): {
        "name": "fusion",
        "parts": {
            "label": {"name": "classification"},
            "views": {"name": "graph_cl", "projector": {"output": 16}, "augment": {"name": "graph_views"}},
        },
    },
    ("fusion", "spectrograms"): {
        "name": "fusion",
        "parts": {"label": {"name": "classification"}, "views": {"name": "simclr", "projector": {"output": 16}}},
    },
}
IMAGES_ONLY = ("mixup", "cutmix", "augment", "teacher_model")  # settings of a tiny config that other inputs refuse
AUGMENTS = {"graphs": "graph_views", "images": "two_views"}


def batch(seed):
    sound = np.random.default_rng(seed).normal(size=(tiny.BATCH, *SOUND["shape"]))
    return {**tiny.batch(seed), "spectrogram": jnp.asarray(sound, jnp.float32)}


def sounds(seed):
    rng = np.random.default_rng(seed)
    audio, lengths = rng.normal(size=(tiny.BATCH, 2500)), rng.integers(800, 2501, tiny.BATCH)
    made = {"audio": jnp.asarray(audio, jnp.float32), "audio_length": jnp.asarray(lengths, jnp.int32)}
    return {**{k: v for k, v in batch(seed).items() if k != "spectrogram"}, **made}


def program_of(name, inputs, spec=SPEC, batch=batch):
    of_sounds = "audio" in spec.elements
    augments = {**AUGMENTS, "spectrograms": "audio_views"} if of_sounds else AUGMENTS
    more = {"spectrogram": {"mels": 16, "window": 0.02, "hop": 0.012}} if of_sounds else {}
    groups = tiny.config(name)
    if models.REGISTRY.get(groups["model"]["name"]).inputs != inputs:
        own = {key: value for key, value in groups["objective"].items() if key not in IMAGES_ONLY}
        own = copy.deepcopy(OTHERS.get((name, inputs), own))
        if name == "fusion" and of_sounds:
            own["parts"]["views"]["augment"] = {"name": "audio_views"}
        if inputs in augments and issubclass(objectives.REGISTRY.get(name), TwoView):
            own["augment"] = {"name": augments[inputs]}
        more |= {key: groups["model"][key] for key in ("vocab_size",) if key in groups["model"]}
        groups = {"model": {**ENCODERS[inputs], **more}, "objective": own}
    objective = objectives.create(groups, spec, tiny.STEPS)
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(optimizers.AdamW(), lambda step: 1.0, lengths)
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    return Program.build(objective, optimization, mesh, batch(0))


def test_every_objective_and_family_has_a_cell():
    assert {name for name, _ in CELLS} == set(objectives.REGISTRY)
    families = {family for cells in objectives.modalities().values() for names in cells.values() for family in names}
    assert families == set(models.REGISTRY)


@pytest.mark.parametrize(("name", "inputs"), at_most(CELLS, 12))
def test_a_cell_passes_shape_evaluation(name, inputs):
    program = program_of(name, inputs)
    assert "loss" in program.shapes.meters
    assert program.objective.reads == inputs


@pytest.mark.parametrize("name", at_most([name for name, inputs in CELLS if inputs == "spectrograms"], 4))
def test_sounds_are_read_wherever_spectrograms_are(name):
    """25 frames of 160 samples, 96 apart, of sounds of 2,500 samples, some of them shorter."""
    elements = {**tiny.SPEC.elements, "audio": {"shape": [2500], "dtype": "float32"}}
    elements["audio_length"] = {"shape": [], "dtype": "int32"}
    spec = dataclasses.replace(tiny.SPEC, elements=elements, sample_rate=8000)
    program = program_of(name, "spectrograms", spec, sounds)
    assert "loss" in program.shapes.meters
    assert program.objective.unwrapped.model.image_shape == (16, 25, 1)


@pytest.mark.full
@pytest.mark.parametrize(("name", "inputs"), CELLS)
def test_a_cell_trains_two_steps(name, inputs):
    program = program_of(name, inputs)
    with parallel.mesh_context(program.mesh):
        state = program.jitted_init()(0)
        for step in range(2):
            state, metrics = program.jitted_step()(state, program.put(batch(step)))
    assert np.isfinite(metrics["loss"]) and all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_the_command(capsys):
    assert cli.main(["list", "objectives", "--matrix"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.partition("\n\n")[0].splitlines()[1:]}
    assert set(rows) == set(objectives.REGISTRY)
    assert rows["rotation"].count("yes") == 1 and rows["classification"].count("yes") == 4
    assert cli.main(["list", "models", "--matrix"]) != 0
    assert "`ssljax list objectives` does" in capsys.readouterr().err
