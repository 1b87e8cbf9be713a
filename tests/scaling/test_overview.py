"""Tables of a study: states, live steps, sums, and predicted times by hand."""

import json

import tiny_runs

from ssljax.base import schema
from ssljax.scaling.cost import Cost
from ssljax.scaling.ledger import Ledger, Outcome
from ssljax.scaling.overview import Live, planned, span_text, status
from ssljax.scaling.study import StudyConfig, make_study

CONFIG = {**tiny_runs.LM, "data": {"source": "builtin:digits"}}


def prepared(tmp_path, seeds=3):
    made = make_study(CONFIG, schema.build(StudyConfig, {"seeds": seeds}, "study"), "a")
    ledger = Ledger(tmp_path, make=True)
    costs = {run.hash: Cost(2, 1, 100, 8, 10.0, 4, 2_000_000) for run in made.runs}
    ledger.add(made, costs)
    return ledger, made, costs


def test_states_and_sums(tmp_path):
    ledger, made, costs = prepared(tmp_path)
    first, second = ledger.claim("a", "w", limit=2)
    done = Outcome("done", step=100, loss=1.25, seconds=50.0, metrics={"knn/accuracy": 0.5})
    ledger.record(first, "w", done)
    folder = ledger.workdir(second.hash)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 40, "loss": 2.0}) + "\n")
    found = status(ledger, "a")
    assert found.columns == ["run", "state", "step", "loss", "knn accuracy", "time", "host", "why"]
    assert [row[:5] for row in found.rows] == [
        ["seed=0", "done", "100 / 100", "1.25", "50.0 %"],
        ["seed=1", "running", "40 / 100", "2", ""],
        ["seed=2", "planned", "0 / 100", "", ""],
    ]
    assert found.notes == ["3 runs: 1 planned, 1 running, 1 done; 1.4e+03 FLOPs in 50 s of trainers"]
    with Live(ledger, "a") as live:
        live.refresh(at_once=True)
    table = planned(made, costs, ledger.rows())
    assert [row[1] for row in table.rows] == ["done", "running", "planned"]
    assert table.rows[0][2:] == ["2", "100", "3,200 tokens", "1e+03", "2.0", "50 s"], "1000 FLOPs at 20 a second"
    assert table.notes[0] == "3 runs, 3e+03 FLOPs, 2e+03 of them to do, about 0:01:40 of trainers"


def test_a_trunk_is_counted_once():
    keys = {"generator": {"name": "cooldowns", "lengths": [10, 20]}}
    text = {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}
    config = {**CONFIG, "schedule": {"name": "wsd"}, "data": text}
    made = make_study(config, schema.build(StudyConfig, keys, "study"), "a")
    costs = {run.hash: Cost(2, 1, run.stop or run.config.steps, 8, 10.0, None, 0) for run in made.runs}
    table = planned(made, costs)
    assert [row[5] for row in table.rows] == ["80", "20", "80", "40"], "steps 0 to 8, 8 to 10, 8 to 16, 16 to 20"


def test_times_for_readers():
    assert [span_text(s) for s in (0, 0.4, 99, 100, 3723, 90_000)] == [
        "",
        "0 s",
        "99 s",
        "0:01:40",
        "1:02:03",
        "1 day, 1:00:00",
    ]
