"""Groups of configs of one shape."""

import logging

from ssljax.config import RunConfig, build
from ssljax.scaling.stackable import Group, numbers, refusals, stackable

MICRO = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": "micro_objective:Micro"},
    "data": {"source": "builtin:digits", "max_examples": 64},
    "optimizer": {"name": "adamw"},
    "mesh": {"data": 8},
    "steps": 6,
    "batch_size": 16,
    "log": {"every_steps": 2, "progress": False, "trackers": [], "pictures": False},
}


def config(**changes) -> RunConfig:
    """The config with keys such as `optimizer__learning_rate` changed."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in MICRO.items()}
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (values[group] if group else values)[name] = value
    return build(values)


def test_numbers_are_the_keys_that_are_declared_as_float_and_have_one():
    found = numbers(config(optimizer__clip_norm=1.0))
    assert {"objective.temperature", "optimizer.learning_rate", "optimizer.clip_norm"} <= found.keys()
    assert "optimizer.layer_decay" not in found, "None is no number"
    assert "optimizer.lr_per" not in found and "optimizer.moment_dtype" not in found
    assert all(isinstance(value, float) for value in found.values())


def test_seeds_and_numbers_vary_and_all_else_divides():
    configs = [
        config(),
        config(seed=1, data__seed=3),
        config(optimizer__learning_rate=0.1, seed=2),
        config(batch_size=32),
        config(objective__temperature=0.5, optimizer__weight_decay=0.0),
        config(optimizer__clip_norm=1.0),
        config(optimizer__clip_norm=2.0),
        config(log__every_steps=3),
    ]
    varied = ("objective.temperature", "optimizer.learning_rate", "optimizer.weight_decay")
    assert stackable(configs) == [
        Group((0, 1, 2, 4), varied),
        Group((3,)),
        Group((5, 6), ("optimizer.clip_norm",)),
        Group((7,)),
    ]
    assert stackable(configs[:2]) == [Group((0, 1))], "seeds need no numbers"


def test_a_number_that_python_reads_divides_and_the_log_says_so(caplog):
    configs = [config(objective__smoothing=s, optimizer__learning_rate=r) for s in (0.0, 0.1) for r in (0.1, 0.2)]
    with caplog.at_level(logging.INFO):
        found = stackable(configs)
    assert found == [Group((0, 1), ("optimizer.learning_rate",)), Group((2, 3), ("optimizer.learning_rate",))]
    assert "objective.smoothing: runs with different values are not stacked: Python code reads its value" in caplog.text
    refused = refusals(config(), ["objective.keep", "objective.smoothing", "objective.temperature"])
    assert refused.keys() == {"objective.keep", "objective.smoothing"}


def test_runs_that_cannot_share_a_process_or_a_program_are_alone(caplog):
    with_wandb = [config(log__trackers=["wandb"], seed=seed) for seed in range(2)]
    assert stackable(with_wandb) == [Group((0,)), Group((1,))]
    wrong = [config(optimizer__layer_decay=0.5, optimizer__learning_rate=r) for r in (0.1, 0.2)]  # it has no layers
    assert stackable(wrong) == [Group((0,)), Group((1,))]
