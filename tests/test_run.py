"""Whole runs by `run.train`: learning, resuming after a kill, and refusing mistakes."""

import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, run, runs
from ssljax.base.errors import UserError
from ssljax.base.signals import Stopped
from ssljax.config import build, load
from ssljax.runs.evaluation import make_evaluator, open_run
from ssljax.runs.recorder import Recorder
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints
from ssljax.train.program import Program

TINY = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 2, "heads": 2, "patch_size": 4, "dropout": 0.1},
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits", "max_examples": 200},
    "optimizer": {"name": "adamw"},
    "mesh": {"data": 8},
    "steps": 8,
    "batch_size": 32,
    "log": {"every_steps": 3, "progress": False, "trackers": [], "pictures": False},
    "checkpoint": {"every_steps": 2},
}
CLOCK = {
    "seconds",
    "examples_per_second",
    "tokens_per_second",
    "data_wait_share",
    "host_share",
    "model_flops_per_second",
    "mfu",
}


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def parameters(workdir, step=None):
    """The saved state of a workdir as {path: array}."""
    config = build(json.loads((workdir / "config.json").read_text()))
    program = runs.assemble(config).program
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, config.identity())
    state, _ = checkpoints.restore(program.target(), step)
    checkpoints.close()
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(state)}


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        np.testing.assert_array_equal(a[k], b[k], err_msg=k)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run.train(TINY, workdir)
    return workdir


def test_a_run_writes_its_workdir(undisturbed):
    names = {p.name for p in undisturbed.iterdir()}
    assert {"config.json", "data.json", "metrics.jsonl", "checkpoints", "report.html"} <= names
    assert [line["step"] for line in metrics(undisturbed)] == [3, 6, 8]
    assert all(np.isfinite(line["loss"]) for line in metrics(undisturbed))


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_run(undisturbed, tmp_path, monkeypatch):
    """After SIGTERM in the middle of a log interval, the run is saved and continues bit for bit."""
    original = Recorder.save

    def save_then_term(self, step, state):
        original(self, step, state)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "save", save_then_term)
    with pytest.raises(Stopped):
        run.train(TINY, tmp_path)
    monkeypatch.undo()
    run.train(TINY, tmp_path)
    same(parameters(tmp_path), parameters(undisturbed))
    assert metrics(tmp_path) == metrics(undisturbed)
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 4] and starts[0]["time"] < starts[1]["time"]
    for start in starts:
        seconds = start["seconds"]
        assert seconds["start"] > 0 and seconds["checkpoints"] > 0 and min(seconds.values()) >= 0
        assert sum(seconds.values()) < 2 * seconds["total"] + 0.01, "the parts are within the total"
    page = (tmp_path / "report.html").read_text()
    assert "start and compilation" in page and "from step 4" in page


def train_command(config, workdir):
    """The command that trains a config in a separate process."""
    file = workdir.parent / f"{workdir.name}.py"
    file.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    return [sys.executable, "-m", "ssljax.cli", "train", "--config", str(file), "--workdir", str(workdir)]


def assert_one_line_error(command, text):
    """Runs a command that must exit with code 2 and print, after lines of the log, one line of error."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    *others, last = done.stderr.splitlines()
    assert done.returncode == 2 and last.startswith("error: ") and text in last, done.stderr
    assert all(line[:2] in ("I ", "W ") for line in others), done.stderr


def kill_and_resume(config, workdir, kill_at):
    """Trains in a separate process, kills it with SIGKILL once step `kill_at` is logged, and trains to the end."""
    command = train_command(config, workdir)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    path = workdir / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and any(
            json.loads(x)["step"] >= kill_at for x in path.read_text().splitlines() if x[-1] == "}"
        ):
            process.kill()
            break
        time.sleep(0.002)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_kill_minus_9_and_resume(tmp_path):
    config = {**TINY, "steps": 10, "log": {**TINY["log"], "every_steps": 1}, "checkpoint": {"every_steps": 3}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run.train(config, whole)
    kill_and_resume(config, killed, kill_at=random.SystemRandom().randrange(3, 8))
    same(parameters(killed), parameters(whole))
    assert metrics(killed) == metrics(whole)


@pytest.mark.parametrize("moment", ["imports", "start-up"])
def test_sigterm_before_the_first_step_is_one_line_and_exit_code_75(tmp_path, moment):
    command = train_command(TINY, tmp_path / "run")
    if moment == "imports":
        hook = "import builtins, os, signal\nreal = builtins.__import__\n"
        hook += "def stop(name, *more):\n    if name == 'flax.linen': os.kill(os.getpid(), signal.SIGTERM)\n"
        hook += "    return real(name, *more)\nbuiltins.__import__ = stop\n"
    else:  # while the initial state is computed
        hook = "import os, signal\nfrom ssljax.train.program import Program\n"
        hook += "Program.jitted_init = Program.jitted_variables = lambda self: os.kill(os.getpid(), signal.SIGTERM)\n"
    code = f"{hook}from ssljax import cli\nimport sys\nsys.exit(cli.main({command[3:]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "stopped: no step was taken; the same command continues" and "Traceback" not in done.stderr
    left = [p.name for p in tmp_path.rglob("*") if p.name.endswith(".tmp") or "-tmp" in p.name]
    assert not left, "nothing is half-written"


def test_a_signal_in_the_last_step_leaves_a_checkpoint_that_is_ranked_later(tmp_path, monkeypatch):
    config = {
        **TINY,
        "evals": {"knn": {"every_steps": 2, "max_examples": 100, "k": 5}},
        "checkpoint": {"every_steps": 2, "best": {"metric": "knn/accuracy"}},
    }
    original = Recorder.evaluate

    def term_then_evaluate(self, step, state):
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, state)

    def ranks():
        checkpoints = Checkpoints(tmp_path / "checkpoints", build(config).checkpoint, {}, read_only=True)
        return {step: checkpoints.manager.metrics(step) for step in checkpoints.steps()}

    monkeypatch.setattr(Recorder, "evaluate", term_then_evaluate)
    with pytest.raises(Stopped, match="step 8 is saved"):
        run.train(config, tmp_path)
    monkeypatch.undo()
    assert ranks()[8] is None
    (line,) = [
        line for line in run.train(config, tmp_path).evaluations if line["eval"] == "knn" and line["of"] == "trained"
    ]
    assert ranks()[8] == {"knn/accuracy": line["metrics"]["accuracy"]}
    assert parameters(tmp_path, 8)[".step"] == 8


def test_a_signal_during_an_evaluation_abandons_it_and_the_next_start_runs_it(tmp_path, monkeypatch):
    config = {**TINY, "evals": {"knn": {"every_steps": 4, "max_examples": 100, "k": 5}}}
    monkeypatch.setattr("ssljax.evals.knn.knn_predict", lambda *args, **options: forever())

    def forever():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    began = time.monotonic()
    with pytest.raises(Stopped, match="step 4 is saved"):
        run.train(config, tmp_path)
    assert time.monotonic() - began < 300
    assert not (tmp_path / "evals.jsonl").exists()
    monkeypatch.undo()
    run.train(config, tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["of"] == "trained"] == [4, 8]


def test_nothing_runs_beside_the_step_but_the_data(tmp_path, monkeypatch):
    """Threads of a progress bar and of TensorBoard imported modules while the main thread imported others."""
    seen = set()
    monkeypatch.setattr(Recorder, "save", lambda self, step, state: seen.update(threading.enumerate()))
    before = set(threading.enumerate())
    log = {**TINY["log"], "progress": True, "trackers": ["tensorboard"], "stall_seconds": None}
    run.train({**TINY, "log": log, "steps": 2}, tmp_path)
    modules = {type(thread).__module__.partition(".")[0] for thread in seen - before}
    assert modules <= {"threading"}, "threads of libraries that draw or write"
    assert list(tmp_path.glob("events*"))


@pytest.mark.full
@pytest.mark.parametrize("name", objectives.REGISTRY)
def test_every_objective_survives_kill_minus_9(name, tmp_path):
    """Parameters and metrics are equal bit for bit, with dropout, teachers, queues and text caches."""
    config = {
        **TINY,
        **tiny.config(name, bytes=True),
        "data": tiny.data(name, tmp_path),
        "steps": 30,
        "log": {**TINY["log"], "every_steps": 1},
        "checkpoint": {"every_steps": 3},
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run.train(config, whole)
    kill_and_resume(config, killed, kill_at=random.SystemRandom().randrange(5, 20))
    same(parameters(killed), parameters(whole))
    assert metrics(killed) == metrics(whole)


def damage(folder, step, how):
    """Damages every data file of a checkpoint."""
    for file in (folder / str(step) / "state").glob("**/d/*"):
        if how == "flip":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0x10
            file.write_bytes(bytes(content))
        elif how == "truncate":
            os.truncate(file, file.stat().st_size // 2)
        else:
            file.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_skipped(undisturbed, tmp_path, caplog, how):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    damage(workdir / "checkpoints", 8, how)
    assert parameters(workdir)[".step"] == 6
    assert "checkpoint 8 is damaged and skipped" in caplog.text
    damage(workdir / "checkpoints", 6, how)
    with pytest.raises(UserError, match="no sound checkpoint"):
        parameters(workdir)


def test_without_a_sound_checkpoint_every_start_is_refused_and_changes_nothing(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (6, 8):
        damage(workdir / "checkpoints", step, "flip")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no sound checkpoint among steps \[8, 6\].*new folder"):
            run.train(TINY, workdir)
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["6", "8"]
        assert metrics(workdir) == metrics(undisturbed) and not list(workdir.glob("damaged-*"))


def test_damaged_checkpoints_are_reported_without_tracebacks(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (6, 8):
        damage(workdir / "checkpoints", step, "delete")
    assert_one_line_error(train_command(TINY, workdir), "no sound checkpoint")


def test_a_restart_removes_lines_after_the_restored_step(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write('{"step": 9, "lo')
    run.train(TINY, workdir)
    assert metrics(workdir) == metrics(undisturbed)


def test_another_mesh_and_slices_continue_the_same_run(undisturbed, tmp_path):
    """Free keys may change at a restart: on another mesh the result is equal to round-off."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    run.train({**TINY, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "microbatches": 2}, workdir)
    # Parameters are not compared: some gradients are zero except for round-off (biases of keys), and Adam makes full
    # steps of them.
    for line, other in zip(metrics(workdir), metrics(undisturbed), strict=True):
        assert line.pop("batch_hash") == other.pop("batch_hash")
        for k in line:
            # Rank and uniformity depend on small eigenvalues and distances, which these steps change.
            rtol = 1e-3 if k.startswith("health/") else 1e-4
            np.testing.assert_allclose(line[k], other[k], rtol=rtol, err_msg=f"{k} at step {line['step']}")


def test_another_config_in_the_same_workdir_is_refused(undisturbed):
    other = {**TINY, "objective": {**TINY["objective"], "temperature": 0.5}}
    with pytest.raises(UserError, match=r"objective\.temperature: 0\.1 -> 0\.5.*--resume=force"):
        run.train(other, undisturbed)


def test_a_workdir_in_which_no_step_was_taken_is_new(tmp_path, monkeypatch):
    """A first start that failed (images of mixed shapes, too little memory) does not bind the corrected config."""

    def fail(program):
        raise UserError("out of memory")

    monkeypatch.setattr("ssljax.runs.recorder.make_health", fail)
    with pytest.raises(UserError, match="memory"):
        run.train(TINY, tmp_path)
    monkeypatch.undo()
    config = {**TINY, "data": {**TINY["data"], "image_size": 4}, "batch_size": 16, "steps": 1}
    run.train(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16
    with pytest.raises(UserError, match=r"holds another run \(.*batch_size: 16 -> 32"):
        run.train(TINY, tmp_path)


def test_a_workdir_of_damaged_checkpoints_alone_is_not_new(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "metrics.jsonl").unlink()
    for step in (6, 8):
        damage(workdir / "checkpoints", step, "delete")
    with pytest.raises(UserError, match="holds another run"):
        run.train({**TINY, "batch_size": 16}, workdir)


def test_an_unknown_key_in_the_workdir_names_its_config_json(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"temperature"', '"oldkey": 1, "temperature"'))
    for call in (lambda f: run.train(TINY, f), runs.evaluate, runs.language_model):
        with pytest.raises(UserError, match=r"run/config\.json: objective\.oldkey: unknown key.*--resume=force"):
            call(workdir)
    run.train(TINY, workdir, "force")
    assert "oldkey" not in path.read_text()


def test_a_workdir_belongs_to_one_process(tmp_path):
    with Workdir(tmp_path).lock(), pytest.raises(UserError, match="another process is training"):
        run.train(TINY, tmp_path)


def test_other_data_under_the_same_name_are_refused(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    path = tmp_path / "run" / "data.json"
    path.write_text(path.read_text().replace('"size": 200', '"size": 199'))
    with pytest.raises(UserError, match=r"a run on other data \(size: 199 -> 200\)"):
        run.train(TINY, tmp_path / "run")


def test_fewer_steps_than_the_checkpoint_are_refused(undisturbed):
    with pytest.raises(UserError, match=r"steps: got 4, but .* has a checkpoint of step 8"):
        run.train({**TINY, "steps": 4}, undisturbed)


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("knn", {"test_split": "tset"}, r"evals\.knn\.test_split: unknown split 'tset'"),
        ("knn", {"feature": "poled"}, r"evals\.knn\.feature: the objective gives no 'poled'"),
        ("knn", {"labels_per_class": 1000}, r"evals\.knn\.labels_per_class: got 1000"),
        ("few_shot", {"shots": [5000]}, r"evals\.few_shot\.shots: got 5000"),
        ("perplexity", {}, r"evals\.perplexity\.type: SimCLR has no likelihoods"),
        ("retrieval", {}, r"evals\.retrieval\.type: the objective gives no 'image'"),
        ("zero_shot", {}, r"evals\.zero_shot\.type: the data of this run has no tokenizer"),
        (
            "loss",
            {"batch_size": 4096},
            r"evals\.loss\.batch_size: got 4096, must be at most the \d+ examples of split 'test'",
        ),
    ],
)
def test_a_mistake_in_an_evaluation_is_reported_before_the_first_step(tmp_path, name, keys, message):
    with pytest.raises(UserError, match=message):
        run.train({**TINY, "evals": {name: keys}}, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_held_out_labels_must_be_classes_of_the_objective(tmp_path):
    for split, first in {"train": 0, "test": 5}.items():
        label = np.arange(40) % 5 + first
        np.savez(tmp_path / f"{split}.npz", image=np.zeros((40, 8, 8, 1), np.uint8), label=label)
    config = {
        **TINY,
        "objective": {"name": "classification"},
        "data": {"source": f"npz:{tmp_path}/{{split}}.npz"},
        "evals": {"loss": {"batch_size": 8}},
    }
    message = r"evals\.loss\.test_split: split 'test' has label 9, but the run learns 5 classes \(labels 0 to 4\)"
    with pytest.raises(UserError, match=message):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assembly = runs.assemble(build({**config, "evals": {"knn": {}}}))  # the objective reads no labels
    make_evaluator(assembly).check(assembly.program.shapes.params, assembly.program.shapes.extra)


def test_the_metric_of_the_best_checkpoint_must_exist(tmp_path, monkeypatch):
    config = {
        **TINY,
        "evals": {"knn": {"every_steps": 2, "max_examples": 100, "k": 5}},
        "checkpoint": {"every_steps": 2, "best": {"metric": "knn/acuracy"}},
    }
    message = r"checkpoint\.best\.metric: got 'knn/acuracy'; did you mean 'knn/accuracy'\? \(there are: knn/accuracy\)"
    with pytest.raises(UserError, match=message):
        run.train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.setattr(
        "ssljax.evals.knn.Knn.check", lambda self, reader: ()
    )  # as in an evaluation outside the package
    with pytest.raises(UserError, match=message):
        run.train(config, tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2]


def test_results_are_written_before_the_controls_run(tmp_path, monkeypatch):
    def fail(*args):
        raise UserError("no controls")

    monkeypatch.setattr("ssljax.evals.Evaluator.controls", fail)
    with pytest.raises(UserError, match="no controls"):
        run.train({**TINY, "steps": 2, "evals": {"knn": {"max_examples": 100, "k": 5}}}, tmp_path)
    (line,) = [json.loads(x) for x in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert (line["eval"], line["of"], line["step"]) == ("knn", "trained", 2)


def test_devices_share_the_batches_of_an_evaluation(tmp_path):
    """This includes the default batch size of evaluations."""
    config = {**TINY, "mesh": {"data": -1}, "batch_size": 12, "steps": 2, "evals": {"loss": {}}}
    three = jax.devices()[:3]
    with pytest.raises(UserError, match=r"evals\.loss\.batch_size: got 256, must be a multiple of 3 \(devices"):
        runs.assemble(build(config), three)
    config["evals"] = {"loss": {"batch_size": 99}}
    assert runs.assemble(build(config), three).program.mesh.size == 3


def test_a_workdir_is_evaluated_on_devices_that_share_all_its_batches(tmp_path, monkeypatch):
    config = {**TINY, "mesh": {"data": 2}, "batch_size": 12, "steps": 2, "evals": {"loss": {"batch_size": 100}}}
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:2])
    run.train(config, tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: devices[:3])
    (trained, _) = runs.evaluate(tmp_path)
    assert trained["metrics"]["loss"] > 0
    with open_run(Workdir(tmp_path)) as (assembly, _):
        assert assembly.program.mesh.size == 2


def test_early_stopping_ends_the_run_and_a_restart_adds_nothing(tmp_path):
    evals = {"knn": {"every_steps": 1, "max_examples": 64, "k": 5}}
    config = {**TINY, "steps": 30, "evals": evals, "early_stopping": {"metric": "knn/accuracy", "patience": 2}}
    done = run.train(config, tmp_path)
    values = [line["metrics"]["accuracy"] for line in Workdir(tmp_path).evaluations() if line["of"] == "trained"][
        : int(done.state.step)
    ]
    ended = [n for n in range(3, len(values) + 1) if max(values[n - 2 : n]) <= max(values[: n - 2])]
    assert int(done.state.step) == ended[0] < 30
    assert (tmp_path / "checkpoints" / str(ended[0])).is_dir() and (tmp_path / "report.html").exists()
    again = run.train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state, done.state)
    longer = run.train({**config, "early_stopping": None, "steps": ended[0] + 1}, tmp_path, "force")
    assert int(longer.state.step) == ended[0] + 1
    with pytest.raises(UserError, match=r"early_stopping\.metric: got 'knn/acuracy'; did you mean 'knn/accuracy'"):
        run.train({**config, "early_stopping": {"metric": "knn/acuracy"}}, tmp_path / "other")
    with pytest.raises(UserError, match=r"early_stopping\.metric: got 'loss/loss', must be 'evaluation/metric'"):
        build({**config, "early_stopping": {"metric": "loss/loss"}})


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    config = {
        **TINY,
        "evals": {"knn": {"every_steps": 2, "max_examples": 100, "k": 5}},
        "checkpoint": {"every_steps": 2, "keep": 1, "best": {"metric": "knn/accuracy", "mode": "max"}},
    }
    run.train(config, tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "evals.jsonl").read_text().splitlines()]
    values = {x["step"]: x["metrics"]["accuracy"] for x in lines if x["eval"] == "knn" and x["of"] == "trained"}
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    best = max(values.values())
    assert 8 in kept and any(values[s] == best for s in kept) and len(kept) <= 2


@pytest.mark.parametrize("every_steps", [None, 4])
def test_the_best_checkpoint_must_be_one_that_was_evaluated(tmp_path, every_steps):
    config = {
        **TINY,
        "evals": {"knn": {"every_steps": 6, "max_examples": 100, "k": 5}},
        "checkpoint": {"every_steps": every_steps, "best": {"metric": "knn/accuracy"}},
    }
    with pytest.raises(
        UserError, match=rf"checkpoint.every_steps: got {every_steps}, must divide evals.knn.every_steps 6"
    ):
        run.train(config, tmp_path)


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)]).returncode:
        pytest.skip("needs root with the right to mount a small tmpfs")
    try:
        config = {**TINY, "steps": 30, "checkpoint": {"every_steps": 2, "keep": 30}}
        assert_one_line_error(train_command(config, mount / "run"), "disk is full")
        assert parameters(mount / "run")[".step"] >= 2
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_many_non_finite_steps_stop_the_run_with_the_ids(tmp_path):
    config = {
        **TINY,
        "optimizer": {"name": "sgd", "learning_rate": 1e30},
        "log": {**TINY["log"], "every_steps": 2, "skipped_in_a_row": 3},
        "steps": 40,
    }
    with pytest.raises(UserError, match=r"steps in a row were not finite.*ids"):
        run.train(config, tmp_path)
    assert all(np.isfinite(v).all() for v in parameters(tmp_path).values()), "a non-finite step left a trace"


def test_evaluations_of_a_finished_workdir(tmp_path):
    run.train({**TINY, "steps": 2, "evals": {"knn": {"max_examples": 100, "k": 5}}}, tmp_path)
    lines = runs.evaluate(tmp_path, ["knn"])
    assert {line["of"] for line in lines} == {"trained", "untrained", "raw", "majority"}


def test_evaluations_written_at_the_same_time_are_all_kept(tmp_path):
    """`ssljax eval` may run next to the trainer."""

    def write(step):
        line = {"step": step, "eval": "knn", "of": "trained", "metrics": {}, "headline": [], "better": "higher"}
        Workdir(tmp_path).write_evaluations([line])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(200)))
    lines = [json.loads(line) for line in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert sorted(line["step"] for line in lines) == list(range(200))


def test_the_step_compiles_once_with_evaluations_between(tmp_path, monkeypatch):
    seen = []
    original = Program.jitted_step

    def remember(self):
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(Program, "jitted_step", remember)
    run.train({**TINY, "evals": {"knn": {"every_steps": 2, "max_examples": 64, "k": 5}}}, tmp_path)
    assert seen[0]._cache_size() == 1


def test_quickstart_config_is_sound():
    path = pathlib.Path(__file__).parent.parent / "configs/quickstart.py"
    config, _ = load(str(path), [("steps", "10")])
    assert config.steps == 10
    assert CheckpointConfig(every_steps=100) == config.checkpoint
