"""Whole runs in stacks: the same folders as runs alone, also after stops, and no harm from a run that fails.

More faults, and runs of a vision transformer on meshes: `pytest -m full tests/scaling/test_stacks.py`.
"""

import json
import os
import pathlib
import signal

import numpy as np
import pytest
from test_run import TINY, metrics, parameters
from test_stackable import config

from ssljax import run
from ssljax.base.errors import UserError
from ssljax.base.signals import Stopped
from ssljax.config import build
from ssljax.runs.finished import Finished
from ssljax.runs.recorder import Recorder
from ssljax.runs.workdir import Workdir
from ssljax.scaling import stacks
from ssljax.scaling.stacks import fitting, train_runs, train_stack

LOSS = {"loss": {"every_steps": 3, "batch_size": 16, "max_examples": 32}}


def different() -> list:
    """Three runs that differ in seed, rate, decay and temperature."""
    return [
        config(evals=LOSS, optimizer__learning_rate=0.01),
        config(evals=LOSS, optimizer__learning_rate=0.03, optimizer__weight_decay=0.5, seed=1),
        config(evals=LOSS, optimizer__learning_rate=0.01, objective__temperature=0.5, objective__size=0.5),
    ]


def close(a, b, rtol: float, what: str, least: float = 0.0) -> None:
    """Compares arrays relative to the largest entry, or to `least` if that is larger."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(least, np.abs(b).max(initial=0)), err_msg=what)


def assert_equal_states(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
    """Asserts that saved states are equal. Arrays that are zero but for round-off (biases of keys, their moments) are
    compared relative to a hundredth of the largest entry of their kind."""
    kind = lambda key: next((name for name in ("mu", "nu", "ema", "params") if f".{name}" in key), key)  # noqa: E731
    scale: dict[str, float] = {}
    for key, value in theirs.items():
        scale[kind(key)] = max(scale.get(kind(key), 0.0), float(np.abs(value.astype(np.float64)).max(initial=0)))
    assert mine.keys() == theirs.keys()
    for key in theirs:  # 1 - b2 is a difference of float32 in a stack, of float64 alone
        close(mine[key], theirs[key], 1e-4 if "opt_state" in key else rtol, key, 1e-2 * scale[kind(key)])


def lines(folder: pathlib.Path, name: str) -> list[dict]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_equal_numbers(folder: pathlib.Path, other: pathlib.Path, rtol: float = 1e-5) -> None:
    """Asserts that the logged numbers of two folders are equal."""
    for line, wanted in zip(metrics(folder), metrics(other), strict=True):
        assert line.keys() == wanted.keys()
        for key, value in wanted.items():
            if value is None or isinstance(value, str):
                assert line[key] == value
            else:  # the rank is a function of singular values, of which some are near 0
                np.testing.assert_allclose(line[key], value, 1e-3 if "rank" in key else rtol, err_msg=key)


def assert_equal_runs(folder: pathlib.Path, other: pathlib.Path, rtol: float = 1e-5) -> None:
    """Asserts that two folders hold the same run: files, config, data, numbers, evaluations, checkpoints."""
    hidden = {".lease.lock"}
    assert {p.name for p in folder.iterdir()} - hidden == {p.name for p in other.iterdir()} - hidden
    for name in ("config.json", "data.json"):
        assert (folder / name).read_text() == (other / name).read_text()
    assert_equal_numbers(folder, other, rtol)
    for line, wanted in zip(lines(folder, "evals.jsonl"), lines(other, "evals.jsonl"), strict=True):
        assert {**line, "metrics": 0} == {**wanted, "metrics": 0}
        assert line["metrics"] == pytest.approx(wanted["metrics"], rel=rtol)
    steps = [{p.name for p in (f / "checkpoints").iterdir() if p.name.isdigit()} for f in (folder, other)]
    assert steps[0] == steps[1]
    assert_equal_states(parameters(folder), parameters(other), rtol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[pathlib.Path]:
    """The folders of runs one by one."""
    root = tmp_path_factory.mktemp("alone")
    for number, one in enumerate(different()):
        run.train(one, root / str(number))
    return [root / str(number) for number in range(3)]


def test_runs_of_a_stack_equal_runs_alone(alone, tmp_path):
    folders = [tmp_path / str(number) for number in range(3)]
    outcomes = train_stack(different(), folders)
    for folder, wanted, outcome in zip(folders, alone, outcomes):
        assert isinstance(outcome, Finished) and outcome.workdir == folder and int(outcome.state.step) == 6
        assert not outcome.state.hyper
        assert_equal_runs(folder, wanted)
        (start,) = lines(folder, "starts.jsonl")
        assert start.keys() == lines(wanted, "starts.jsonl")[0].keys() and min(start["seconds"].values()) >= 0
        written = [line for line in (folder / "log.txt").read_text().splitlines() if "workdir" in line]
        assert len(written) == 1 and written[0].endswith(str(folder)), "a log has the lines of its run alone"


def stop_at(monkeypatch, step: int) -> None:
    """Sends SIGTERM to this process when a run has saved this step."""
    original = Recorder.save

    def save_then_term(self, at, state):
        original(self, at, state)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "save", save_then_term)


def test_stops_and_continues_alone_and_in_another_stack(alone, tmp_path, monkeypatch):
    """A stack is stopped in the middle of a log interval; one run goes on alone, one with a run that is new."""
    configs = [build({**one.to_dict(), "checkpoint": {"every_steps": 3}}) for one in different()]
    folders = [tmp_path / str(number) for number in range(3)]
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped, match="step 3 is saved"):
        train_stack(configs[:2], folders[:2])
    monkeypatch.undo()
    for folder in folders[:2]:
        assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()] == ["3"]
    run.train(configs[0], folders[0])
    ended = dict(train_runs(list(zip(configs[1:], folders[1:]))))
    assert all(isinstance(outcome, Finished) for outcome in ended.values())
    for number, folder in enumerate(folders):
        assert [start["step"] for start in lines(folder, "starts.jsonl")] == ([0] if number == 2 else [0, 3])
        assert_equal_states(parameters(folder, 6), parameters(alone[number], 6))
        own, wanted = metrics(folder), metrics(alone[number])
        assert [line["step"] for line in own] == [line["step"] for line in wanted]
        close([line["loss"] for line in own], [line["loss"] for line in wanted], 1e-5, "loss")


@pytest.mark.full
def test_a_half_done_run_continues_in_a_stack(alone, tmp_path, monkeypatch):
    configs = [build({**one.to_dict(), "checkpoint": {"every_steps": 3}}) for one in different()[:2]]
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        run.train(configs[0], tmp_path / "0")
    monkeypatch.undo()
    train_stack(configs, [tmp_path / "0", tmp_path / "1"])
    for number in range(2):
        assert_equal_states(parameters(tmp_path / str(number), 6), parameters(alone[number], 6))


def rates(*values: float, **more):
    return [
        config(optimizer={"name": "sgd", "learning_rate": value, "momentum": 0.0}, log__skipped_in_a_row=2, **more)
        for value in values
    ]


def test_a_run_that_diverges_ends_alone_with_the_error_of_a_single_run(tmp_path):
    configs = rates(0.1, 1e38, 0.2)
    ended = list(train_runs([(one, tmp_path / str(n)) for n, one in enumerate(configs)]))
    assert ended[0][0] == 1, "it ends first"
    outcomes = dict(ended)
    with pytest.raises(UserError) as single:
        run.train(configs[1], tmp_path / "single")
    assert str(outcomes[1]) == str(single.value)
    assert_equal_numbers(tmp_path / "1", tmp_path / "single")
    assert not (tmp_path / "1" / "report.html").exists()
    train_stack([configs[0], configs[2]], [tmp_path / "a", tmp_path / "b"])
    for mine, other in (("0", "a"), ("2", "b")):
        assert_equal_runs(tmp_path / mine, tmp_path / other, 1e-6)


@pytest.mark.full
def test_runs_that_end_are_left_out_once_half_have_ended(tmp_path, monkeypatch):
    sizes = []
    original = stacks._compiled
    monkeypatch.setattr(stacks, "_compiled", lambda *parts: sizes.append(parts[2]) or original(*parts))
    configs = rates(0.1, 1e38, 1e38)
    outcomes = train_stack(configs, [tmp_path / str(n) for n in range(3)])
    assert isinstance(outcomes[0], Finished) and all(isinstance(outcome, UserError) for outcome in outcomes[1:])
    assert sizes[0] == 3 and sizes[-1] == 1
    run.train(configs[0], tmp_path / "alone")
    assert_equal_runs(tmp_path / "0", tmp_path / "alone")


@pytest.mark.full
def test_early_stopping_ends_one_run(tmp_path):
    more = {
        "evals": {"loss": {"every_steps": 1, "batch_size": 16, "max_examples": 32}},
        "early_stopping": {"metric": "loss/loss", "mode": "min", "patience": 2},
    }
    configs = rates(0.1, 1e-30, **more)
    ended = list(train_runs([(one, tmp_path / str(n)) for n, one in enumerate(configs)]))
    assert [number for number, _ in ended] == [1, 0]
    steps = {number: int(outcome.state.step) for number, outcome in ended}
    assert steps == {0: 6, 1: 3}
    run.train(configs[1], tmp_path / "alone")
    assert_equal_runs(tmp_path / "1", tmp_path / "alone")


@pytest.mark.full
def test_a_folder_of_another_run_ends_this_run_only(tmp_path):
    configs = rates(0.1, 0.2, 0.3)
    run.train(rates(0.5)[0], tmp_path / "1")
    outcomes = train_stack(configs, [tmp_path / str(n) for n in range(3)])
    assert isinstance(outcomes[1], UserError) and "holds another run" in str(outcomes[1])
    assert all(isinstance(outcomes[n], Finished) for n in (0, 2))
    again = train_stack(configs[::2], [tmp_path / "0", tmp_path / "2"])
    assert [int(outcome.state.step) for outcome in again] == [6, 6], "finished runs are evaluated again, as alone"


@pytest.mark.full
def test_an_error_of_the_data_ends_all_runs(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no data")

    monkeypatch.setattr(stacks._Stack, "_read", fail)
    outcomes = train_stack(rates(0.1, 0.2), [tmp_path / "0", tmp_path / "1"])
    assert [str(outcome) for outcome in outcomes] == ["no data", "no data"]
    with Workdir(tmp_path / "0").lock():
        pass


def test_runs_of_several_shapes_are_no_stack(tmp_path):
    configs = [*rates(0.1, 0.2, steps=1), config(steps=1)]
    with pytest.raises(UserError, match=r"stack: the runs have 2 shapes.*optimizer\.name: 'sgd' -> 'adamw'"):
        train_stack(configs, [tmp_path / str(n) for n in range(3)])
    with pytest.raises(UserError, match=r"stack: got 0"):
        next(train_runs([], stack=0))


@pytest.mark.full
def test_runs_of_several_shapes_are_all_trained(tmp_path):
    configs = [*rates(0.1, 0.2, steps=1), config(steps=1), config(steps=1, optimizer__layer_decay=0.5)]
    for number, outcome in train_runs([(one, tmp_path / str(n)) for n, one in enumerate(configs)]):
        assert isinstance(outcome, UserError if number == 3 else Finished)
        assert (tmp_path / str(number) / "report.html").exists() == (number != 3)


@pytest.mark.full
def test_a_mistake_that_all_configs_have_ends_all_runs(tmp_path):
    configs = [config(optimizer__layer_decay=0.5, seed=seed) for seed in range(2)]
    outcomes = train_stack(configs, [tmp_path / str(n) for n in range(2)])
    assert all("the model has no layers" in str(outcome) for outcome in outcomes)


@pytest.mark.parametrize(("available", "want"), [(1000.0, 8), (85.0, 6), (45.0, 2), (5.0, 1)])
def test_the_number_of_runs_is_the_largest_that_fits(available, want):
    asked = []

    def needed(count):
        asked.append(count)
        return 20.0 + 10.0 * count

    assert fitting(needed, 8, available, 10.0) == want
    assert len(asked) <= 3, "each number is a compilation"


def test_stacks_have_nearly_equal_sizes():
    assert [stacks._even(n, 5) for n in (3, 5, 8, 11)] == [3, 5, 4, 4]


@pytest.mark.full
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 8, "shard": "optimizer"}])
def test_stacks_on_meshes_equal_runs_alone(mesh, tmp_path):
    """With a large epsilon, Adam does not make full steps of gradients that are zero but for round-off."""
    configs = [
        build(
            {
                **TINY,
                "mesh": mesh,
                "seed": seed,
                "objective": {**TINY["objective"], "temperature": temperature},
                "optimizer": {"name": "adamw", "learning_rate": rate, "eps": 1e-2},
                "log": {**TINY["log"], "check_every_steps": 2},
                "evals": {"knn": {"every_steps": 4, "max_examples": 64, "k": 5}},
            }
        )
        for seed, temperature, rate in ((0, 0.1, 1e-3), (0, 0.2, 3e-3), (1, 0.1, 1e-3))
    ]
    outcomes = train_stack(configs, [tmp_path / f"stack{n}" for n in range(3)], stack=2)
    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    for number, one in enumerate(configs):
        run.train(one, tmp_path / f"alone{number}")
        assert_equal_runs(tmp_path / f"stack{number}", tmp_path / f"alone{number}")
