"""Runs below a folder: plain workdirs in every state, and the best of their metrics."""

import csv
import dataclasses
import json

import pytest
from test_driver import CONFIG, prepared

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.locks import this_process
from ssljax.scaling.cost import Cost
from ssljax.scaling.ledger import Ledger
from ssljax.scaling.listing import best, list_runs, run_columns, workdirs, write_csv
from ssljax.scaling.study import StudyConfig, make_study


def workdir(path, temperature, step=4, steps=4, accuracy=(0.5, 0.7, 0.6)):
    path.mkdir(parents=True)
    config = {"objective": {"name": "simclr", "temperature": temperature}, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    (path / "data.json").write_text("{}")
    (path / "metrics.jsonl").write_text(json.dumps({"step": step, "loss": temperature}) + "\n")
    start = {"step": 0, "time": "2026-01-01T00:00:00+00:00", "mesh": {}, "seconds": {}, "steps": steps}
    (path / "starts.jsonl").write_text(json.dumps(start) + "\n")
    line = {"eval": "knn", "better": "higher", "headline": ["accuracy"], "of": "trained"}
    lines = [{**line, "step": i, "metrics": {"accuracy": value}} for i, value in enumerate(accuracy)]
    (path / "evals.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_workdirs_of_train_are_listed(tmp_path):
    workdir(tmp_path / "a", 0.1)
    workdir(tmp_path / "deep/b", 0.5, step=2)
    (workdir(tmp_path / "c", 0.2, step=2) / ".lease").write_text(json.dumps(this_process()))
    (workdir(tmp_path / "d", 0.3) / "metrics.jsonl").write_text("3\n3\n")
    (tmp_path / "no run").mkdir()
    found = list_runs(tmp_path)
    assert found.columns == ["run", "state", "step", "loss", "knn accuracy ↑", "differs in"]
    assert found.rows == [
        ["a", "done", "4 / 4", "0.1", "70.0 %", "objective.temperature 0.1"],
        ["c", "running", "2 / 4", "0.2", "70.0 %", "objective.temperature 0.2"],
        ["d", "damaged", "0", "", "", ""],
        ["deep/b", "unfinished", "2 / 4", "0.5", "70.0 %", "objective.temperature 0.5"],
    ]
    assert [row[0] for row in list_runs(tmp_path / "a").rows] == ["a"], "a workdir itself"


def test_the_best_value_has_a_direction():
    line = {"eval": "loss", "better": "lower", "headline": ["loss"], "of": "trained"}
    values = [(1, 3.0), (2, 1.0), (3, 2.0), (4, None)]
    lines = [{**line, "step": step, "metrics": {"loss": value}} for step, value in values]
    assert best(lines) == {"loss/loss": (1.0, "lower")}
    lines = [{**one, "directions": {"loss": None}} for one in lines]
    assert best(lines) == {"loss/loss": (2.0, None)}, "the last one"
    assert best([{**line, "of": "raw", "step": 1, "metrics": {"loss": 0.0}}]) == {}


def test_links_to_folders_above_do_not_loop(tmp_path):
    workdir(tmp_path / "a/b", 0.1)
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    assert workdirs(tmp_path) == [tmp_path / "a/b", tmp_path / "link"]


def test_a_run_of_two_studies_is_one_line_of_the_table(tmp_path):
    prepared(tmp_path / "store", (0, 1), "a")
    prepared(tmp_path / "store", (1, 2), "b")
    assert write_csv(tmp_path / "store", tmp_path / "table.csv") == 3
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["study"], row["seed"]) for row in rows] == [("a", "0"), ("a", "1"), ("b", "2")]
    assert len(run_columns(tmp_path / "store/b")["run"]) == 2, "the folder of a study"


def test_the_values_that_name_a_run_are_columns(tmp_path):
    study = make_study(CONFIG, schema.build(StudyConfig, {"seeds": 2}, "study"), "iso")
    runs = tuple(dataclasses.replace(run, labels={"budget": 1e10, **run.labels}) for run in study.runs)
    costs = {run.hash: Cost(2, 1, 9, 8, 10.0, 4, 100) for run in runs}
    Ledger(tmp_path, make=True).add(dataclasses.replace(study, runs=runs), costs)
    columns = run_columns(tmp_path)
    assert columns["budget"] == [1e10, 1e10] and columns["seed"] == [0, 1]
    assert all(len(column) == 2 for column in columns.values())


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_folders_without_runs_are_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must hold workdirs of `ssljax train` or a store of `ssljax sweep`"):
        list_runs(tmp_path / name)
