"""The data of curves that go into a page, from small artificial workdirs, and the page in a browser."""

import dataclasses
import json
import re
import shutil
import subprocess

import jax
import pytest
import tiny_objectives as tiny

from ssljax import parallel, report
from ssljax.base.durations import RunLengths
from ssljax.report import curves, metrics, read_run
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program, batch_shapes

ODD = "raw</script><!--\u2028\"'& ü"


def workdir(path, lines, evals=()):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"objective": {"name": "simclr"}, "model": {"name": "vit"}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = {"eval": "knn", "headline": ["accuracy"], "better": "higher"}
    rows = [{**shared, "of": of, "step": step, "metrics": {"accuracy": value}} for of, step, value in evals]
    (path / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def drawn(*paths):
    """{title: panel} of the sections of runs, as in the page."""
    shown = [curves.Shown(path.name, i, read_run(path)) for i, path in enumerate(paths)]
    data = curves.page_data(curves.sections(shown))
    for panel in (panel for section in data["sections"] for panel in section):
        for line in panel["lines"]:
            line["steps"] = data["steps"][line["steps"]]
    return {panel["title"]: panel for section in data["sections"] for panel in section}, data["steps"]


LINES = [
    {"step": 10, "loss": 3.14159265, "loss/a": 2.0, "loss/b": 1.0, "accuracy": 0.25, "batch_hash": "x", "examples": 8},
    {"step": 20, "loss": None, "loss/a": None, "loss/b": 1.0, "accuracy": 0.5, "data_wait_share": 0.125, "seconds": 1},
    {"step": 30, "loss": 1.0, "loss/a": 0.5, "loss/b": 0.5, "accuracy": 1.0, "data_wait_share": 0.0, "seconds": 2},
]


def test_loss_and_its_terms_share_a_panel_and_values_that_are_not_finite_are_gaps(tmp_path):
    panels, steps = drawn(workdir(tmp_path / "a", LINES))
    assert panels["loss"]["lines"] == [
        {"label": "loss", "color": 0, "steps": [10, 20, 30], "values": [3.14159, None, 1.0]},
        {"label": "a", "color": 1, "steps": [10, 20, 30], "values": [2.0, None, 0.5]},
        {"label": "b", "color": 2, "steps": [10, 20, 30], "values": [1.0, 1.0, 0.5]},
    ]
    assert steps == [[10, 20, 30], [20, 30]], "equal lists of steps are written once"
    assert panels.keys() == {"loss", "accuracy", "share of time without data"}, "texts and counters have no curves"


def test_shares_are_in_per_cent(tmp_path):
    panels, _ = drawn(workdir(tmp_path / "a", LINES))
    for title, values in (("accuracy", [25.0, 50.0, 100.0]), ("share of time without data", [12.5, 0.0])):
        assert panels[title]["unit"] == "%" and panels[title]["lines"][0]["values"] == values
    assert panels["loss"]["unit"] == ""


def test_controls_are_levels_of_their_newest_finite_value(tmp_path):
    evals = [("trained", 20, 0.75), ("trained", 10, 0.5), ("raw", 0, 0.7), ("raw", 20, 0.625), ("raw", 30, None)]
    panels, _ = drawn(workdir(tmp_path / "a", [], [*evals, ("untrained", 0, 0.25)]))
    panel = panels["knn: accuracy"]
    assert panel["lines"] == [{"label": "a", "color": 0, "steps": [10, 20], "values": [50.0, 75.0]}]
    assert panel["levels"] == [
        {"label": "raw", "color": 1, "value": 62.5},
        {"label": "untrained", "color": 2, "value": 25.0},
    ]


def test_a_single_value_is_no_curve(tmp_path):
    lines = [{"step": 1, "loss": 1.0, "grad_norm": None}, {"step": 2, "loss": None, "grad_norm": None}]
    assert drawn(workdir(tmp_path / "a", lines, [("trained", 2, 0.5), ("raw", 0, 0.1)])) == ({}, [])


def test_several_runs_have_a_line_each(tmp_path):
    one, two = workdir(tmp_path / "one", LINES, [("raw", 0, 0.1)]), workdir(tmp_path / "two", LINES[:2])
    panels, _ = drawn(one, two)
    for title, first, second in (("loss", [3.14159, None, 1.0], [3.14159, None]), ("loss/b", [1, 1, 0.5], [1, 1])):
        assert [(line["label"], line["color"], line["values"]) for line in panels[title]["lines"]] == [
            ("one", 0, first),
            ("two", 1, second),
        ]
        assert panels[title]["levels"] == []


def test_seeds_have_a_mean_with_its_spread(tmp_path):
    """Runs of one colour: the mean and the standard deviation at the steps that all have, by hand."""
    rows = {"a": (1.0, 2.0, 4.0), "b": (3.0, None, 1.0), "c": (2.0, 6.0, 4.0, 9.0)}
    shown = []
    for name, losses in rows.items():
        lines = [{"step": 10 * (j + 1), "loss": loss} for j, loss in enumerate(losses)]
        run = read_run(workdir(tmp_path / name, lines))
        shown.append(curves.Shown(name, 1 if name == "b" else 0, run, "mean"))
    mean, single = curves.page_data(curves.sections(shown))["sections"][0][0]["lines"]
    assert mean["label"] == "mean" and mean["values"] == [1.5, 4.0, 4.0]
    spread = [0.5**0.5, 8**0.5, 0.0]
    assert mean["high"] == pytest.approx([m + s for m, s in zip(mean["values"], spread)], rel=1e-5)
    assert mean["low"] == pytest.approx([m - s for m, s in zip(mean["values"], spread)], rel=1e-5)
    assert single["values"] == [3.0, None, 1.0] and "low" not in single
    alike = [dataclasses.replace(one, color=0) for one in shown]
    (mean,) = curves.page_data(curves.sections(alike))["sections"][0][0]["lines"]
    assert mean["values"] == [2.0, None, 3.0], "the steps of the shortest run; a gap where one is not finite"


def page_json(html):
    """The JSON of a page as a browser cuts it out: up to the first end tag of a script."""
    text = re.search(r'<script type="application/json" id="curves">(.*?)</script', html, re.DOTALL)[1]
    assert "<" not in text, "a browser reads <!-- and <script in a script as markup"
    return json.loads(text, parse_constant=pytest.fail)


def test_odd_names_stay_in_the_json(tmp_path):
    lines = [{**line, f"loss/{ODD}": 1e-12} for line in LINES]
    html = report.render(workdir(tmp_path / "a", lines, [("trained", 1, 0.5), ("trained", 2, 0.5), (ODD, 0, 0.25)]))
    loss, evaluation = page_json(html)["sections"][:2]
    assert loss[0]["lines"][-1]["label"] == ODD and loss[0]["lines"][-1]["values"] == [1e-12] * 3
    assert evaluation[0]["levels"] == [{"label": ODD, "color": 1, "value": 25.0}]


# Tracing all objectives takes most of a minute: pytest -m full tests/report/test_curves.py
NAMES = [pytest.param(name, marks=() if name == "simclr" else pytest.mark.full) for name in tiny.CONFIGS]


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_an_objective_has_a_meaning(name):
    """Their names are known from the traced state, without a step."""
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(optimizers.AdamW(), lambda step: 1.0, lengths)
    shapes = batch_shapes(tiny.SPEC, tiny.BATCH)
    program = Program.build(tiny.make(name), optimization, mesh, shapes)
    found = {metric for metric in program.shapes.meters if metric.partition("/")[0] != "loss"}
    assert {"grad_norm", "learning_rate"} <= found <= metrics.METRICS.keys()


def test_meanings_are_given_once():
    found = metrics.meanings(["alignment", "health/feature_std", "feature_std", "of_ones_own", "expert_load/image"])
    assert [line.partition(":")[0] for line in found] == ["features", "alignment", "feature std", "expert load"]
    assert metrics.title("health/feature_std") == "features: feature std"
    assert metrics.title("expert_load/image") == "expert load, image" and metrics.title("of_ones_own") == "of ones own"
    assert metrics.meanings(["learning_rate"]) == []


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_curves(tmp_path):
    folder = workdir(tmp_path / "a", LINES, [("trained", 1, 0.5), ("trained", 2, 0.5), ("raw", 0, 0.25)])
    (folder / "report.html").write_text(report.render(folder))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", f"file://{folder / 'report.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("<canvas") == 4, done.stderr
    legends = re.findall(r'class="u-label"[^>]*>(.*?)</', done.stdout)
    assert legends == ["step", "loss", "a", "b", "step", "trained", "raw", "step", "value", "step", "value"]
