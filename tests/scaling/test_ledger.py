"""The ledger: claims are exclusive, a dead worker's runs are free, nothing is done twice, and damage is one line."""

import concurrent.futures
import itertools
import json
import pathlib
import sqlite3
import subprocess
import sys
import time

import pytest
import tiny_runs

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.locks import this_process
from ssljax.scaling import ledger as ledgers
from ssljax.scaling.cost import Cost
from ssljax.scaling.ledger import Ledger, Outcome
from ssljax.scaling.study import StudyConfig, make_study

CONFIG = {**tiny_runs.LM, "data": {"source": "builtin:digits"}}


def study(name="a", **group):
    config = schema.build(StudyConfig, group or {"seeds": 4}, "study")
    return make_study(CONFIG, config, name)


def add(ledger, made, **options):
    costs = {run.hash: Cost(2, 1, 100, 8, 10.0, 4, 100) for run in made.runs}
    return ledger.add(made, costs, **options)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, make=True)


def metrics(ledger, key, *pairs):
    folder = ledger.workdir(key)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"step": step, "loss": loss}) for step, loss in pairs)
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_run_goes_from_planned_to_done(ledger):
    made = study()
    assert add(ledger, made) == 4
    assert [row.state for row in ledger.rows("a")] == ["planned"] * 4
    (claim,) = ledger.claim("a", "w")
    assert claim.hash == made.runs[0].hash and claim.config == made.runs[0].config.to_dict()
    row = ledger.rows("a")[0]
    assert (row.state, row.pid, row.flops, row.tokens) == ("running", this_process()["pid"], 1000.0, 3200)
    done = Outcome("done", step=100, loss=1.5, seconds=2.0, metrics={"knn/accuracy": 0.5}, version="1")
    assert ledger.record(claim, "w", done)
    row = ledger.rows("a")[0]
    assert (row.state, row.step, row.loss, row.seconds, row.metrics) == ("done", 100, 1.5, 2.0, {"knn/accuracy": 0.5})
    assert row.started <= row.ended <= time.time()
    assert [c.name for c in ledger.claim("a", "w", limit=9)] == ["seed=1", "seed=2", "seed=3"]
    assert ledger.claim("a", "w") == [] and ledger.is_open("a")


def test_links_name_the_workdirs(ledger):
    made = study()
    add(ledger, made)
    add(ledger, made)
    link = ledger.store / "a" / "seed=2"
    ledger.workdir(made.runs[2].hash).mkdir(parents=True)
    assert link.resolve() == ledger.workdir(made.runs[2].hash).resolve()


CLAIMS = """
import sys
from ssljax.scaling.ledger import Ledger
ledger, got = Ledger(sys.argv[1]), []
while claims := ledger.claim("a", sys.argv[2]):
    got += [claim.hash for claim in claims]
print(*got, flush=True)
sys.stdin.read()  # alive: its claims are not free
"""


def test_no_run_is_claimed_twice_by_processes_that_race(ledger):
    made = study(seeds=40)
    add(ledger, made)
    command = [sys.executable, "-c", CLAIMS, str(ledger.store)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, f"w{i}"], **pipes) for i in range(3)]
    found = [worker.stdout.readline().split() for worker in workers]
    assert sorted(itertools.chain(*found)) == sorted(run.hash for run in made.runs)
    assert ledger.claim("a", "w") == [], "their workers live"
    for worker in workers:
        worker.kill()
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
    again = ledger.claim("a", "w", limit=99)
    assert [claim.hash for claim in again] == [run.hash for run in made.runs], "their workers are dead"


def test_threads_of_one_process_share_no_run(ledger):
    add(ledger, study(seeds=8))

    def take(worker):
        own = Ledger(ledger.store)
        return [claim.hash for _ in range(8) for claim in own.claim("a", worker)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(itertools.chain(*pool.map(take, "abcd")))
    assert len(found) == len(set(found)) == 8


def test_a_worker_elsewhere_is_dead_after_a_silence(ledger, monkeypatch):
    add(ledger, study(seeds=1, grid=[("batch_size", [8])]))
    (claim,) = ledger.claim("a", "far")
    elsewhere = json.dumps({**this_process(), "host": "far", "machine": "far"})
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE runs SET holder = ?", (elsewhere,))
    now = [1000.0]
    monkeypatch.setattr(ledgers.time, "monotonic", lambda: now[0])
    assert ledger.claim("a", "near") == []
    now[0] += ledgers.EXPIRY - 1
    Ledger(ledger.store).beat("far")
    assert ledger.claim("a", "near") == []
    now[0] += ledgers.EXPIRY - 1
    assert ledger.claim("a", "near") == [], "renewed since"
    now[0] += 2
    (taken,) = ledger.claim("a", "near")
    assert taken.hash == claim.hash
    assert not ledger.record(claim, "far", Outcome("done")), "the first worker has lost it"
    assert ledger.rows("a")[0].state == "running"


def dead(ledger):
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE runs SET holder = ?", (json.dumps({**this_process(), "started": "1"}),))


def test_a_run_that_kills_its_workers_fails_in_the_end(ledger):
    made = study(seeds=1, grid=[("batch_size", [8])])
    add(ledger, made)
    ledger.claim("a", "w0")
    for i in range(1, 2 * ledgers.FRUITLESS):
        dead(ledger)
        metrics(ledger, made.runs[0].hash, (min(i, ledgers.FRUITLESS), 1.0))  # steps forward count
        claims = ledger.claim("a", f"w{i}")
        assert len(claims) == 1, i
    dead(ledger)
    assert ledger.claim("a", "last") == []
    (row,) = ledger.rows("a")
    assert row.state == "failed" and "8 workers died in a row without a further step" in row.why
    assert ledger.retry("a", "failed") == 1 and ledger.rows("a")[0].state == "planned"


def test_a_run_of_two_studies_is_done_once(ledger):
    add(ledger, study())
    (claim,) = ledger.claim("a", "w")
    ledger.record(claim, "w", Outcome("done", step=100))
    assert add(ledger, study("b", seeds=5)) == 1
    assert [row.state for row in ledger.rows("b")] == ["done"] + ["planned"] * 4
    assert ledger.studies() == ["a", "b"] and len(ledger.rows()) == 9


def test_a_study_may_grow_but_not_become_another(ledger):
    add(ledger, study(seeds=2))
    assert add(ledger, study(seeds=3)) == 1
    with pytest.raises(UserError, match=r"--name: .* has another study 'a' \(its run 'seed=2' is not in this one\)"):
        add(ledger, study(seeds=2))
    with pytest.raises(UserError, match="halves other runs"):
        add(ledger, study(seeds=3, halving={"first": 2}))


def test_what_continues_a_failed_run_fails(ledger):
    group = {"generator": {"name": "cooldowns", "lengths": [10, 20]}}
    text = {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}
    keys = {**CONFIG, "schedule": {"name": "wsd"}, "data": text}
    made = make_study(keys, schema.build(StudyConfig, group, "study"), "a")
    add(ledger, made)
    (trunk,) = ledger.claim("a", "w", limit=9)
    assert (trunk.until, trunk.then) == (8, "done"), "the others wait for it"
    ledger.record(trunk, "w", Outcome("done", step=8))
    assert [claim.until for claim in ledger.claim("a", "w", limit=9)] == [None, 16]
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE runs SET state = 'diverged' WHERE hash = ?", (made.runs[2].hash,))
    assert ledger.claim("a", "w") == []
    row = ledger.rows("a")[3]
    assert row.state == "failed" and f"{made.runs[2].hash}, has diverged" in row.why


def test_halving_keeps_the_best(ledger):
    """Nine runs, a third of which continues at steps 10 and 30, whatever the order in which they get there."""
    made = study(seeds=9, halving={"first": 10, "factor": 3})
    add(ledger, made, rungs={run.hash: [10, 30] for run in made.runs})
    losses = dict(zip((run.hash for run in made.runs), (5.0, 1.0, 8.0, 2.0, 9.0, 3.0, 7.0, 4.0, 6.0)))
    claims = ledger.claim("a", "w", limit=9)
    assert {(claim.until, claim.then) for claim in claims} == {(10, "paused")}
    for claim in reversed(claims):
        ledger.halve("a")
        assert "stopped" not in [row.state for row in ledger.rows("a")], "all wait for the last one"
        metrics(ledger, claim.hash, (10, losses[claim.hash]))
        state = "diverged" if losses[claim.hash] == 3.0 else "paused"
        ledger.record(claim, "w", Outcome(state, step=10))
    ledger.halve("a")
    left = ledger.claim("a", "w", limit=9)
    assert [losses[claim.hash] for claim in left] == [1.0, 2.0, 4.0], "the diverged run counts, and is last"
    assert {claim.until for claim in left} == {30}
    row = ledger.rows("a")[0]
    assert row.state == "stopped" and row.why == "halving: rank 4 of 9 at step 10 (loss 5)"
    for claim in left:
        metrics(ledger, claim.hash, (10, losses[claim.hash]), (30, -losses[claim.hash]))
        ledger.record(claim, "w", Outcome("paused", step=30))
    ledger.halve("a")
    (last,) = ledger.claim("a", "w", limit=9)
    assert losses[last.hash] == 4.0 and last.until is None
    ledger.record(last, "w", Outcome("done", step=100))
    ledger.halve("a")
    assert sorted(row.state for row in ledger.rows("a")) == ["diverged", "done"] + ["stopped"] * 7
    assert not ledger.is_open("a")
    assert add(ledger, study("b", seeds=9)) == 0 and ledger.is_open("b") and not ledger.is_open("a")
    assert len(ledger.claim("b", "w", limit=9)) == 7, "another study trains them to their ends"


def test_missing_and_strange_ledgers_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no ledger.sqlite; it is not a store of `ssljax sweep`"):
        Ledger(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(UserError, match="is the workdir of one run"):
        Ledger(tmp_path / "run", make=True)
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="a database of another program"):
        Ledger(tmp_path)


def test_a_ledger_of_the_first_format_is_brought_up_to_date(ledger):
    add(ledger, study(seeds=2))
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute("ALTER TABLE members DROP COLUMN labels")
        db.execute("PRAGMA user_version = 1")
    assert [row.labels for row in Ledger(ledger.store).rows()] == [{}, {}]
    again = Ledger(ledger.store)
    add(again, study(seeds=2))
    assert [row.labels for row in again.rows()] == [{"seed": 0}, {"seed": 1}]


@pytest.mark.parametrize("where", ["head", "middle", "text"])
def test_a_damaged_ledger_is_one_line(ledger, where):
    add(ledger, study(seeds=40))
    ledger.close()
    content = bytearray(ledger.path.read_bytes())
    if where == "text":
        content = bytearray(b"not a database at all " * 100)
    elif where == "head":
        content[:16] = bytes(16)
    else:
        content[4096:] = b"\xff" * (len(content) - 4096)
    pathlib.Path(ledger.path).write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"damaged .*; the runs are safe in runs/"):
        Ledger(ledger.store).rows()


def test_unknown_studies_are_named(ledger):
    add(ledger, study())
    with pytest.raises(UserError, match=r"has no study 'b' \(there are: a\)"):
        ledger.rows("b")
