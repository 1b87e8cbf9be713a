"""Plans have the numbers of the compiled step and its state; errors are one line; a search proposes what fits."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absent_hardware import needs_gpu, needs_tpu
from test_inspection import CONFIG

from ssljax import cli, parallel, runs
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.parallel import hlo
from ssljax.parallel.topology import topology
from ssljax.runs.plan_search import _changed, meshes, search
from ssljax.runs.plans import available_memory, needed_bytes, plan


@pytest.fixture(scope="module")
def planned():
    return plan(build(CONFIG), "cpu:8")


def test_memory_is_that_of_the_compiled_step(planned):
    program = runs.assemble(build(CONFIG), topology("cpu:8").devices).program
    for kind, part in (("parameters", "params"), ("optimiser", "opt_state"), ("averaged parameters", "ema")):
        leaves = jax.tree.leaves(getattr(program.shapes, part))
        places = jax.tree.leaves(getattr(program.shardings, part))
        own = [np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(leaves, places, strict=True)]
        assert planned.memory[kind] == sum(own)
    assert planned.parameters == sum(x.size for x in jax.tree.leaves(program.shapes.params))
    counted = sum(size for kind, size in planned.memory.items() if kind != "program")
    assert planned.needed == counted and planned.fits and not planned.failure


def test_the_planned_program_is_the_one_that_runs(planned):
    """The collectives of the plan are those of the program that takes a step."""
    config = build(CONFIG)
    assembly = runs.assemble(config)
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        state = program.jitted_init()(0)
        batch = program.put(assembly.dataset.batch(0))
        compiled = program.jitted_step().lower(state, batch).compile()
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), assembly.batch_target())
    found = hlo.by_kind(hlo.collectives(hlo.parse(compiled.as_text())), dict(program.mesh.shape))
    assert planned.collectives == tuple((*key, *total) for key, total in found.items())


def test_flops_and_times(planned):
    config = build(CONFIG)
    program = runs.assemble(config).program
    spec = runs.assemble(config).spec
    assert planned.flops == 3 * program.objective.flops(spec) * config.batch_size
    assert planned.flops < planned.products < 2 * planned.flops, "recomputation (remat: dots) adds less than all"
    times = planned.roofline
    assert times.overlapped <= times.serial and 0 < times.mfu_ceiling < 1


def test_json_and_tables(planned):
    values = json.loads(json.dumps(planned.to_json()))
    assert values["mesh"]["fsdp"] == 2 and values["roofline"]["bound"] in ("compute", "memory", "network")
    assert values["collectives"][0].keys() == {"kind", "axes", "runs", "sent"}
    step, memory, _ = planned.tables()
    assert dict(step.rows)["topology"] == "cpu:8: 8 x cpu (data 2, fsdp 2, tensor 2)"
    assert any("peak of its data sheet" in note for note in step.notes) and memory.rows[-1][0] == "all"


def test_a_step_that_does_not_fit(planned):
    small = topology("cpu:8")
    small = dataclasses.replace(small, chip=dataclasses.replace(small.chip, memory=planned.needed - 1))
    found = plan(build(CONFIG), small)
    assert not found.fits and found.tables()[1].rows[-1][0] == "all: does not fit"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (270.00G) exceeds available HBM (15.25G).", 270 * 2**30),
        ("Used 3.5M of 2M", 3.5 * 2**20),
        ("something else", None),
    ],
)
def test_bytes_of_a_message(message, size):
    assert needed_bytes(message) == size


def test_memory_of_a_gpu(monkeypatch):
    class Gpu:
        platform = "gpu"

    target = dataclasses.replace(topology("cpu:8"), devices=[Gpu()])
    assert available_memory(target)[0] == 0.75 * target.chip.memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    share, notes = available_memory(target)
    assert share == 0.9 * target.chip.memory and "90 %" in notes[-1]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(UserError, match="must be a number"):
        available_memory(target)


def test_meshes_of_a_search():
    found = meshes(build({**CONFIG, "mesh": {"data": -1}}), topology("cpu:8"))
    assert {"data": 8, "fsdp": 1, "tensor": 1} in found and {"data": 1, "fsdp": 8, "tensor": 1} in found
    assert {"data": 1, "fsdp": 4, "tensor": 2} in found and all(np.prod(list(m.values())) == 8 for m in found)
    assert len({tuple(m.values()) for m in found}) == len(found)
    halved = meshes(build({**CONFIG, "mesh": {"data": -1, "expert": 2}}), topology("cpu:8"))
    assert all(np.prod(list(m.values())) == 4 for m in halved)


def test_search_takes_more_micro_batches_until_it_fits():
    """With less memory than the fastest setting of a mesh needs, the next ones are compiled."""
    config, target = build({**CONFIG, "mesh": {"data": -1}, "batch_size": 64}), topology("cpu:2")
    everything = search(config, target)
    assert all(trial.plan.fits for trial in everything.trials) and everything.best is not None
    needs = sorted(trial.plan.needed for trial in everything.trials)
    tight = dataclasses.replace(target, chip=dataclasses.replace(target.chip, memory=needs[0] - 1))
    found = search(config, tight)
    assert len(found.trials) > len(everything.trials)
    best = found.best
    assert best is not None and best.plan.fits and not found.trials[0].plan.fits
    assert best.overrides != found.trials[0].overrides
    assert f"fastest that fits: {best.words}" in found.tables()[0].notes
    assert json.loads(json.dumps(found.to_json()))["best"] == best.overrides


WORDS = ["plan", "--config", "configs/quickstart.py", "--config.batch_size=16", "--config.evals={}", "--topology"]


def test_the_command_prints_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*WORDS, "cpu:8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("8 x cpu (data 8)" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS, "v5x:2x2"], "--topology: 'v5x' is unknown"),
        ([*WORDS, "cpu:8", "--config.mesh.tensor=3"], "mesh: data=-1 x tensor=3 does not fit 8 devices"),
        ([*WORDS, "cpu:8", "--config.mesh.tensr=3"], "did you mean 'tensor'"),
        (WORDS[:-1], "--topology"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def run(*words):
    """The plan of a process of its own, as JSON."""
    command = [sys.executable, "-m", "ssljax.cli", *WORDS, *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_process_has_as_many_devices_as_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    assert run("cpu:4")["mesh"]["data"] == 4


@needs_tpu
@pytest.mark.full
def test_a_tpu():
    found = run("v5e:2x2", "--config.mesh.fsdp=2", "--config.model.dtype=bfloat16")
    assert found["device_kind"] == "TPU v5 lite" and found["fits"] and found["mesh"]["fsdp"] == 2
    assert {c["kind"] for c in found["collectives"]} & {"all-gather", "reduce-scatter"}
    assert found["available"] == 15.75 * 2**30


@needs_tpu
@pytest.mark.full
def test_a_step_that_is_too_large_for_a_tpu():
    found = run("v5e:2x2", "--config.model.width=8192", "--config.model.depth=48", "--config.model.heads=64")
    assert not found["fits"] and "exceed" in found["failure"].lower() and found["roofline"] is None


@needs_gpu
@pytest.mark.full
def test_a_gpu():
    found = run("h100:2x2", "--config.model.dtype=bfloat16")
    assert found["device_kind"] == "NVIDIA H100 80GB HBM3" and found["fits"] and found["mesh"]["data"] == 4
    assert {c["kind"] for c in found["collectives"]} & {"all-reduce", "reduce-scatter"}


def test_a_plan_has_the_settings_of_a_preset():
    """It printed the number of micro-batches before the preset had filled it in."""
    config = build({**CONFIG, "mesh": {"preset": "auto"}, "microbatches": 1, "batch_size": 64})
    found = plan(config, "cpu:8")
    assembly = runs.assemble(config, topology("cpu:8").devices)
    assert found.microbatches == assembly.config.microbatches and found.mesh == dict(assembly.program.mesh.shape)
    changed = _changed(config, {"data": 8, "fsdp": 1, "tensor": 1}, 1, "dots")
    assert changed.mesh.preset is None
