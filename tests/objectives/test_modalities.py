"""Objectives and the inputs that they declare: a step of every cell of `ssljax list objectives --matrix`."""

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


def program_of(name, inputs):
    groups = tiny.config(name)
    if models.REGISTRY.get(groups["model"]["name"]).inputs != inputs:
        own = {key: value for key, value in groups["objective"].items() if key not in IMAGES_ONLY}
        own = OTHERS.get((name, inputs), own)
        if inputs in AUGMENTS and issubclass(objectives.REGISTRY.get(name), TwoView):
            own["augment"] = {"name": AUGMENTS[inputs]}
        groups = {"model": ENCODERS[inputs], "objective": own}
    objective = objectives.create(groups, SPEC, tiny.STEPS)
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
