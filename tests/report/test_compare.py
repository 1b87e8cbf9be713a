"""Runs side by side: what differs, means and spreads over seeds, and the page."""

import json
import re
import statistics

import pytest

from ssljax import cli, report
from ssljax.base.errors import UserError

ACCURACIES = {(0.1, 0): 0.7, (0.1, 1): 0.8, (0.5, 0): 0.6}


def workdir(path, temperature, seed, accuracy, metrics=True):
    path.mkdir()
    config = {"objective": {"name": "simclr", "temperature": temperature}, "seed": seed, "steps": 4, "evals": {}}
    (path / "config.json").write_text(json.dumps(config))
    if metrics:
        lines = [{"step": step, "loss": 3.0 - step / 4 - accuracy} for step in (2, 4)]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    line = {"eval": "knn", "better": "higher", "headline": ["accuracy"]}
    found = [
        {**line, "of": of, "step": step, "metrics": {"accuracy": value}}
        for of, step, value in (("trained", 2, accuracy / 2), ("trained", 4, accuracy), ("raw", 4, 0.9))
    ]
    (path / "evals.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in found))
    return path


@pytest.fixture
def folders(tmp_path):
    return [workdir(tmp_path / f"t{t}s{s}", t, s, value) for (t, s), value in ACCURACIES.items()]


def test_the_table_has_a_row_for_each_setting(folders):
    found = report.compare(folders)
    assert found.table.columns == ["run", "objective.temperature", "seeds", "knn accuracy ↑", "training loss"]
    spread = 100 * statistics.stdev([0.7, 0.8])
    assert found.table.rows == [
        ["t0.1s0", "0.1", "2", f"75.0 ± {spread:.1f} %", f"{3 - 1 - 0.75:.4g} ± {spread / 100:.2g}"],
        ["t0.5s0", "0.5", "1", "60.0 %", "1.4"],
    ]
    assert [group.label for group in found.groups] == ["temperature 0.1", "temperature 0.5"]


def test_what_a_run_logs_is_no_difference(folders):
    """Before, a run whose output had no progress bar was a setting of its own."""
    path = folders[1] / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "log": {"progress": False}, "data": {"cache_dir": "x"}})
    )
    assert len(report.compare(folders).table.rows) == 2


def test_keys_of_a_group_that_some_runs_lack(tmp_path):
    """Before, each key of the group was a column."""
    start = {"path": "runs/a", "exclude": [], "heads": "mean"}
    other = {"name": "dino", "head": {"hidden": 3, "output": 4}}
    changes = [{}, {"init_from": start}, {"init_from": {**start, "path": "runs/b"}}, {"objective": other}]
    paths = []
    for i, change in enumerate(changes):
        paths.append(workdir(tmp_path / str(i), 0.1, 0, 0.5) / "config.json")
        config = {**json.loads(paths[i].read_text()), "init_from": None, "data": {"where": {}}}
        paths[i].write_text(json.dumps(config | change))

    def columns(paths):
        return report.compare([path.parent for path in paths]).table.columns[1:-3]

    assert columns(paths[:2]) == columns(paths[:3]) == ["init_from.path"]
    assert columns([paths[0], paths[3]]) == ["objective.name"]
    for path, where in ((paths[0], {"label": 1}), (paths[3], {"size": 2})):
        path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"where": where}}))
    assert columns([paths[0], paths[1], paths[3]])[:3] == ["objective.name", "data.where.label", "init_from.path"]


def test_runs_that_lack_numbers_are_counted(tmp_path, folders):
    more = workdir(tmp_path / "more", 0.5, 3, 0.8)
    (more / "evals.jsonl").unlink()
    (more / "metrics.jsonl").unlink()
    assert report.compare([*folders, more]).table.rows[1][2:] == ["2", "60.0 % (1 of 2)", "1.4 (1 of 2)"]
    different = tmp_path / "other"
    workdir(different, 0.5, 0, 0.3)
    config = json.loads((different / "config.json").read_text())
    (different / "config.json").write_text(json.dumps({**config, "model": {"name": "vit"}}))
    table = report.compare([folders[2], different]).table
    assert table.columns[1:2] == ["model.name"] and [row[1] for row in table.rows] == ["null", "vit"]


def test_a_metric_that_is_not_finite_differs_from_one_that_is_missing(tmp_path):
    """Before, both were empty cells."""
    diverged, unfinished = workdir(tmp_path / "a", 0.1, 0, 0.5), workdir(tmp_path / "b", 0.5, 0, 0.5)
    (diverged / "evals.jsonl").write_text(
        (diverged / "evals.jsonl").read_text().replace('"accuracy": 0.5}', '"accuracy": null}')
    )
    (unfinished / "evals.jsonl").unlink()
    assert [row[3] for row in report.compare([diverged, unfinished]).table.rows] == ["not finite", ""]


def test_the_command_prints_and_writes_a_page(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out.html"
    assert cli.main(["compare", *map(str, folders), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "75.0 ± 7.1 %" in printed and printed.endswith(f"{out}\n")
    page = out.read_text()
    assert "temperature 0.1, mean of 2 seeds" in page and "temperature 0.5" in page and "75.0 ± 7.1 %" in page
    assert "<h2>Runs</h2>" in page and page.count('class="panels"') == 2, "loss and evaluations"


def test_runs_with_many_changes_or_equal_folders_have_labels_that_differ(tmp_path):
    paths = [tmp_path / name / "run" for name in "ab"]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        workdir(path, 0.1 + i, 0, 0.5)
        config = json.loads((path / "config.json").read_text())
        config["objective"] |= dict.fromkeys("xyz", i)
        (path / "config.json").write_text(json.dumps(config))
    page = report.compare(paths).page()
    data = json.loads(re.search(r'id="curves">(.*?)</script', page)[1])
    assert [line["label"] for line in data["sections"][0][0]["lines"]] == list(map(str, paths))
    assert page.count("<th>started</th>") == 0 and page.count(f"<td>{paths[0]}</td>") == 1


def test_mistakes(folders, tmp_path, capsys):
    with pytest.raises(UserError, match="at least two"):
        report.compare(folders[:1])
    with pytest.raises(UserError, match="is given twice"):
        report.compare([folders[0], folders[0].parent / "." / folders[0].name])
    assert cli.main(["compare", str(folders[0]), str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["report", *map(str, folders)]) == 2
    assert "report: got 3 workdirs, must be one; `ssljax compare` compares several" in capsys.readouterr().err
    assert cli.main(["compare", *map(str, folders), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "--out: the folder" in capsys.readouterr().err


def test_a_copy_is_no_second_seed(folders, tmp_path):
    """Two runs of one config and seed have a row each, and labels that differ."""
    copy = workdir(tmp_path / "copy", 0.1, 1, 0.9)
    found = report.compare([*folders, copy])
    assert [(row[0], row[2]) for row in found.table.rows] == [("t0.1s0", "2"), ("t0.5s0", "1"), ("copy", "1")]
    assert "temperature 0.1 (copy)" in found.page()
    assert "temperature 0.1 (t0.1s0), mean of 2 seeds" in found.page()


def test_many_differences_are_listed_below_the_table(tmp_path):
    paths = [workdir(tmp_path / name, 0.1, 0, 0.5) for name in "ab"]
    for i, path in enumerate(paths):
        config = json.loads((path / "config.json").read_text())
        config["objective"] |= dict.fromkeys("stuvwxyz", i)
        (path / "config.json").write_text(json.dumps(config))
    table = report.compare(paths).table
    assert table.columns == ["run", "seeds", "knn accuracy ↑", "training loss"]
    assert table.notes[1].startswith("a: objective.s 0, objective.t 0") and table.notes[2].startswith(
        "b: objective.s 1"
    )
