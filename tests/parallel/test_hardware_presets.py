"""Presets: each kind of device has a row; the choice fits by its own estimate; given keys are kept."""

import dataclasses
import json
import logging

import jax
import pytest

from ssljax import runs
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.parallel import hardware, presets
from ssljax.runs.assembly import with_preset

KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "cpu": "cpu",
}
SMALL = presets.Sizes(10**8, False, 512, 2.4e6, 12)
LARGE = presets.Sizes(7 * 10**9, False, 512, 2048 * 4096 * 2.0, 32)
CONFIG = {
    "model": {"name": "gpt", "preset": None, "width": 32, "depth": 2, "heads": 2},
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin:python-docs", "seq_len": 16},
    "optimizer": {"name": "adamw"},
    "mesh": {"preset": "auto"},
    "steps": 2,
    "batch_size": 8,
}


@pytest.mark.parametrize("chip", KINDS)
def test_every_kind_of_device_has_a_row(chip):
    assert chip in presets.preset(KINDS[chip]).chips and hardware.chip(KINDS[chip]).name == chip


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_small_model_is_copied_and_a_large_one_is_split(kind):
    small, large = (presets.choose(kind, 64, 8, sizes) for sizes in (SMALL, LARGE))
    assert (small.data, small.fsdp) == (64, 1)
    assert large.data * large.fsdp == 64 and large.fsdp >= 8
    for choice, sizes in ((small, SMALL), (large, LARGE)):
        assert sizes.batch % (64 * choice.microbatches) == 0
        assert choice.expected <= hardware.chip(kind).memory * presets.preset(kind).usable


def test_gpus_split_within_a_host_if_that_suffices():
    sizes = dataclasses.replace(SMALL, parameters=3 * 10**9)  # 48 GB
    assert presets.choose(KINDS["h100"], 64, 8, sizes).fsdp == 8
    assert presets.choose(KINDS["v5p"], 64, 4, sizes).fsdp == 64


def test_less_memory_takes_more_recomputation_then_micro_batches():
    order = {"dots": 1, "full": 2}
    levels = []
    for factor in (1, 4, 80):
        choice = presets.choose(KINDS["h100"], 8, 8, dataclasses.replace(SMALL, block=factor * SMALL.block))
        levels.append((choice.microbatches, order[choice.remat]))
    assert levels == sorted(levels) and levels[0] == (1, 1) and levels[-1][0] > 1


def test_an_unknown_device_is_one_line():
    with pytest.raises(
        UserError, match=r"mesh.preset: no preset for device 'TPU v2' \(there are: v4, .*cpu\); set none"
    ):
        presets.preset("TPU v2")


def test_nothing_is_filled_in_without_a_preset():
    config = build({**CONFIG, "mesh": {}})
    assert with_preset(config, jax.devices(), runs.assemble(config).spec) is config


def test_keys_with_other_values_than_their_defaults_are_kept(caplog):
    given = {**CONFIG, "mesh": {"preset": "auto", "data": 4, "fsdp": 2}, "microbatches": 1}
    given["model"] = {**CONFIG["model"], "remat": "none"}
    with caplog.at_level(logging.INFO):
        config = runs.assemble(build(given)).config
    assert (config.mesh.data, config.mesh.fsdp, config.model.remat) == (4, 2, "none")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("preset")]
    assert "microbatches=1" in line and "mesh.data" not in line and "remat" not in line


def test_what_was_filled_in_is_said_and_recorded(tmp_path, caplog):
    import ssljax

    with caplog.at_level(logging.INFO):
        ssljax.train(build(CONFIG), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["mesh"]["data"] == 8 and values["mesh"]["preset"] == "auto" and values["model"]["remat"] == "dots"
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("preset")]
    assert len(lines) == 1 and "cpu: mesh.data=8, mesh.fsdp=1, model.remat=dots, microbatches=1" in lines[0]
    ssljax.train(build(CONFIG), tmp_path)  # the same command continues: no difference of keys


def test_the_choice_knows_the_keys_that_are_given():
    """Memory was estimated for the split and the recomputation that the preset would have taken."""
    kind, free = KINDS["v5e"], presets.choose(KINDS["v5e"], 64, 4, SMALL)
    assert presets.choose(kind, 64, 4, SMALL, presets.Given(fsdp=8)).fsdp == 8
    none = presets.choose(kind, 64, 4, SMALL, presets.Given(remat="none"))
    assert none.remat == "none" and (none.microbatches > free.microbatches or none.expected > free.expected)
    assert presets.choose(kind, 64, 4, LARGE, presets.Given(microbatches=2)).microbatches == 2


def test_axes_without_numbers_are_refused():
    config = build({**CONFIG, "mesh": {"preset": "auto", "data": 1, "tensor": -1}})
    with pytest.raises(UserError, match=r"mesh\.preset: the axes tensor, context and expert must have numbers"):
        with_preset(config, jax.devices(), None)
