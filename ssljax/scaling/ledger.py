"""The ledger of a store: which runs are planned, running and done, in a SQLite file that several workers share.

A store is a folder with `ledger.sqlite`, `runs/HASH/` (the workdirs), and `STUDY/NAME` (links to them). Every change is
one transaction that takes the write lock at its beginning, with a rollback journal: it is safe for any number of
processes, and on file systems without shared memory, where the faster write-ahead log is not.

A worker claims a run by a lease: the row names its process, and a number that the worker raises. The claim is free
again if the process has ended, or, if it ran on another machine, if the number has not changed for `EXPIRY` seconds by
the clock of the one who looks. What keeps two trainers out of a workdir is the lease of the workdir itself.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssljax.base.errors import UserError
from ssljax.base.files import local_folder
from ssljax.base.locks import EXPIRY, is_alive, this_process
from ssljax.report.read import METRICS, read_lines
from ssljax.scaling.halving import Halving

if TYPE_CHECKING:  # both import jax, which a look into a ledger does not need
    from ssljax.scaling.cost import Cost
    from ssljax.scaling.study import Study

NAME = "ledger.sqlite"
STATES = ("planned", "running", "paused", "done", "failed", "diverged", "stopped")
ENDED = ("done", "failed", "diverged", "stopped")
FRUITLESS = 8  # claims in a row whose workers died without a further step, after which a run has failed

_VERSION = 2
_APPLICATION = 0x55A11EDC  # tells the file from other SQLite files
_BUSY = 60.0  # seconds that a transaction waits for those of other processes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    name TEXT PRIMARY KEY, created REAL NOT NULL, halving TEXT
);
CREATE TABLE IF NOT EXISTS runs (
    hash TEXT PRIMARY KEY, config TEXT NOT NULL, parent TEXT, stop INTEGER,
    state TEXT NOT NULL, why TEXT NOT NULL DEFAULT '',
    host TEXT, pid INTEGER, worker TEXT, holder TEXT, beat INTEGER NOT NULL DEFAULT 0,
    claims INTEGER NOT NULL DEFAULT 0, claimed_step INTEGER NOT NULL DEFAULT -1,
    started REAL, ended REAL, seconds REAL NOT NULL DEFAULT 0,
    parameters INTEGER, non_embedding INTEGER, flops REAL, examples INTEGER, tokens INTEGER, steps INTEGER NOT NULL,
    version TEXT, step INTEGER NOT NULL DEFAULT 0, loss REAL, metrics TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS members (
    study TEXT NOT NULL REFERENCES studies, hash TEXT NOT NULL REFERENCES runs, position INTEGER NOT NULL,
    name TEXT NOT NULL, changes TEXT NOT NULL, rungs TEXT NOT NULL DEFAULT '[]', rung INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0, labels TEXT NOT NULL DEFAULT '{}', PRIMARY KEY (study, hash)
);
"""

# The free keys of a run that has not begun are those of the newest study that has it.
_ADD_RUN = """
INSERT INTO runs (hash, config, parent, stop, parameters, non_embedding, flops, examples, tokens, steps, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'planned')
ON CONFLICT (hash) DO NOTHING
"""
_CORRECT_RUN = """
UPDATE runs SET config = :config,
    why = CASE state WHEN 'failed' THEN '' ELSE why END, claims = CASE state WHEN 'failed' THEN 0 ELSE claims END,
    ended = CASE state WHEN 'failed' THEN NULL ELSE ended END,
    state = CASE state WHEN 'failed' THEN 'planned' ELSE state END
WHERE hash = :hash AND config != :config AND state NOT IN ('running', 'done')
"""
_ADD_MEMBER = """
INSERT INTO members (study, hash, position, name, changes, labels, rungs) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (study, hash) DO UPDATE
SET position = excluded.position, name = excluded.name, changes = excluded.changes, labels = excluded.labels
"""
_ROWS = """
SELECT r.*, m.study, m.name, m.changes, m.labels FROM members m
JOIN runs r ON r.hash = m.hash JOIN studies s ON s.name = m.study
WHERE ?1 IS NULL OR m.study = ?1 ORDER BY s.created, s.name, m.position
"""
_CLAIM = """
UPDATE runs SET state = 'running', why = '', worker = ?, host = ?, pid = ?, holder = ?, beat = beat + 1,
started = coalesce(started, ?), ended = NULL WHERE hash = ?
"""
_RECORD = """
UPDATE runs SET state = ?, why = ?, step = ?, loss = ?, seconds = seconds + ?, metrics = ?,
version = coalesce(?, version), ended = ?, claims = 0 WHERE hash = ? AND worker = ? AND state = 'running'
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of a study, as the ledger knows it.

    Attributes:
        hash: name of its folder below runs/.
        study, name: the study, and the name of the run in it.
        changes: {dotted key: value}, its difference from the config of the study.
        labels: the values that name it, such as {"budget": 1e12, "depth": 4}.
        state: one of `STATES`; why: the reason in one line, if there is one.
        host, pid, worker: of the newest worker.
        started, ended: times of the first claim and of the end, in seconds since 1970.
        seconds: time that workers spent on it.
        parameters, non_embedding, flops, examples, tokens, steps: its costs; see `ssljax.scaling.cost.Cost`.
        version: version and commit of the code that trained it.
        step, loss: step and loss of its last line of metrics.
        metrics: {"evaluation/metric": value} at its end.
        parent: hash of the run whose last state it continues.
    """

    hash: str
    study: str
    name: str
    changes: dict[str, Any]
    labels: dict[str, Any]
    state: str
    why: str
    host: str | None
    pid: int | None
    worker: str | None
    started: float | None
    ended: float | None
    seconds: float
    parameters: int | None
    non_embedding: int | None
    flops: float | None
    examples: int | None
    tokens: int | None
    steps: int
    version: str | None
    step: int
    loss: float | None
    metrics: dict[str, float]
    parent: str | None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run that a worker holds.

    Attributes:
        hash, name: of the run.
        config: all keys of its config.
        parent: hash of the run whose last state it continues; None: none.
        until: step after which this work ends: the run is done, or waits to be compared; None: it runs to its end.
        then: state that it has after `until`: "done" or "paused".
    """

    hash: str
    name: str
    config: dict[str, Any]
    parent: str | None
    until: int | None
    then: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of the work on a claim.

    Attributes:
        state: "done", "failed", "diverged", "paused", or "planned": to be continued.
        why: the reason in one line; "" if there is nothing to say.
        step, loss: of the last line of metrics.
        seconds: time that was spent.
        metrics: {"evaluation/metric": value} at the end.
        version: version and commit of the code.
    """

    state: str
    why: str = ""
    step: int = 0
    loss: float | None = None
    seconds: float = 0.0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    version: str | None = None


class Ledger:
    """The ledger of a store, opened by one process; other processes may change it at any time.

    Args:
        store: the folder.
        make: True: makes folder and ledger if they are missing.

    Raises:
        UserError: the ledger is missing, damaged, or of another program; the folder is the workdir of a run.
    """

    def __init__(self, store: str | pathlib.Path, make: bool = False):
        self.store = local_folder(store, "--workdir")
        self.path = self.store / NAME
        if (self.store / "config.json").exists():
            raise UserError(
                f"--workdir: {str(self.store)!r} is the workdir of one run; give another folder for studies"
            )
        if not self.path.is_file() and not make:
            raise UserError(f"--workdir: {str(self.store)!r} has no {NAME}; it is not a store of `ssljax sweep`")
        if make:
            self.store.mkdir(parents=True, exist_ok=True)
        self._seen: dict[str, tuple[str, float]] = {}  # run -> (worker and its number, when it was first seen)
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._check_kind(make)

    def _check_kind(self, make: bool) -> None:
        kind, version = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty and make:
            with self._transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        elif (kind, version) == (_APPLICATION, 1):
            self._add_labels()
        elif (kind, version) not in ((_APPLICATION, _VERSION), (0, 0)):
            what = f"a ledger of format {version}" if kind == _APPLICATION else "a database of another program"
            raise UserError(f"{self.path}: {what}, must be a ledger of format {_VERSION}; use another folder")
        elif not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'members'").fetchone():
            raise UserError(f"{self.path}: has no table of runs, so it is no ledger; use another folder")

    def _add_labels(self) -> None:
        """Brings a ledger of format 1 to format 2; the labels of its runs are known once their study is added again."""
        with self._transaction() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == 1:
                db.execute("ALTER TABLE members ADD COLUMN labels TEXT NOT NULL DEFAULT '{}'")
                db.execute(f"PRAGMA user_version = {_VERSION}")

    @property
    def runs(self) -> pathlib.Path:
        """The folder of the workdirs."""
        return self.store / "runs"

    def workdir(self, name: str) -> pathlib.Path:
        """Returns the workdir of the run with this hash."""
        return self.runs / name

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises errors of SQLite as one line for the user."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(f"{self.path}: other processes kept it locked for {_BUSY:.0f} s; try again") from error
            raise UserError(f"{self.path}: cannot be used ({error})") from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: damaged ({error}); the runs are safe in {self.runs.name}/: move the file away and "
                f"repeat the command, which finds what they have done"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its beginning; it is undone after an error."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    # Studies

    def add(self, study: "Study", costs: "Mapping[str, Cost]", rungs: Mapping[str, Sequence[int]] | None = None) -> int:
        """Adds a study, or the further runs of a study that has grown. Returns the number of runs that are new here.

        Runs that the store knows from other studies keep what they have done. A run that another study has stopped
        early is planned again. What is not done gets the free keys of this config, which may correct the reason of a
        failure: a failed run whose free keys changed is planned again.

        Args:
            study: the study.
            costs: costs by hash.
            rungs: steps at which runs pause, by hash.

        Raises:
            UserError: the store has another study of this name.
        """
        halving = json.dumps(dataclasses.asdict(study.halving)) if study.halving else None
        with self._transaction() as db:
            self._refuse_other(db, study, halving)
            db.execute("INSERT OR IGNORE INTO studies VALUES (?, ?, ?)", (study.name, time.time(), halving))
            before = db.execute("SELECT count(*) FROM runs").fetchone()[0]
            for position, run in enumerate(study.runs):
                cost = costs[run.hash]
                sizes = (cost.parameters, cost.non_embedding, cost.flops, cost.examples, cost.tokens)
                values = (run.hash, json.dumps(run.config.to_dict()), run.parent, run.stop, *sizes)
                db.execute(_ADD_RUN, (*values, cost.steps))
                db.execute(_CORRECT_RUN, {"hash": run.hash, "config": values[1]})
                own = (run.changes, run.labels, list((rungs or {}).get(run.hash, ())))
                db.execute(_ADD_MEMBER, (study.name, run.hash, position, run.name, *map(json.dumps, own)))
            if not study.halving:
                db.execute(
                    "UPDATE runs SET state = 'planned', why = '' WHERE state IN ('stopped', 'paused') AND hash IN "
                    "(SELECT hash FROM members WHERE study = ?)",
                    (study.name,),
                )
            added = db.execute("SELECT count(*) FROM runs").fetchone()[0] - before
        self._link(study)
        return added

    def _refuse_other(self, db: sqlite3.Connection, study: "Study", halving: str | None) -> None:
        known = db.execute("SELECT halving FROM studies WHERE name = ?", (study.name,)).fetchone()
        if known is None:
            return
        advice = "give this one another --name, or another --workdir"
        members = {row["hash"]: row["name"] for row in self._members(db, study.name)}
        missing = [name for key, name in members.items() if key not in {run.hash for run in study.runs}]
        if missing:
            raise UserError(
                f"--name: {str(self.store)!r} has another study {study.name!r} (its run {missing[0]!r} is not in this "
                f"one); {advice}"
            )
        if known["halving"] != halving or (halving and len(study.runs) > len(members)):
            raise UserError(f"--name: the study {study.name!r} in {str(self.store)!r} halves other runs; {advice}")

    def _link(self, study: "Study") -> None:
        """Makes STUDY/NAME -> ../runs/HASH, where the file system has links."""
        folder = self.store / study.name
        with contextlib.suppress(OSError, NotImplementedError):
            folder.mkdir(exist_ok=True)
            for run in study.runs:
                link, target = folder / run.name, os.path.join(os.pardir, self.runs.name, run.hash)
                if link.is_symlink() and os.readlink(link) != target:
                    link.unlink()
                if not link.is_symlink():
                    link.symlink_to(target, target_is_directory=True)

    def studies(self) -> list[str]:
        """Returns the names of the studies, oldest first."""
        with self._errors():
            return [row["name"] for row in self._db.execute("SELECT name FROM studies ORDER BY created, name")]

    def rows(self, study: str | None = None) -> list[Row]:
        """Returns the runs of a study, or of all studies: a run once for each of them.

        Raises:
            UserError: there is no such study.
        """
        if study is not None and study not in (names := self.studies()):
            there = ", ".join(names) or "none"
            raise UserError(f"--name: {str(self.store)!r} has no study {study!r} (there are: {there})")
        with self._errors():
            found = self._db.execute(_ROWS, (study,)).fetchall()
        fields = [field.name for field in dataclasses.fields(Row)]
        texts = ("changes", "labels", "metrics")
        return [Row(**{k: json.loads(row[k]) if k in texts else row[k] for k in fields}) for row in found]

    @staticmethod
    def _members(db: sqlite3.Connection, study: str) -> list[sqlite3.Row]:
        return db.execute(
            "SELECT r.*, m.name, m.rungs, m.rung, m.dropped FROM members m JOIN runs r ON r.hash = m.hash "
            "WHERE m.study = ? ORDER BY m.position",
            (study,),
        ).fetchall()

    # Claims

    def claim(
        self, study: str, worker: str, limit: int = 1, alike: Callable[[Claim, Claim], bool] | None = None
    ) -> list[Claim]:
        """Takes up to `limit` runs that nobody is working on, in the order of the study; [] if there are none.

        Args:
            study: name of the study.
            worker: name of the worker, different for each.
            limit: largest number of runs.
            alike: (run, another run) -> True if they can be trained together; None: all can.
        """
        out: list[Claim] = []
        process = this_process()
        with self._transaction() as db:
            for row in self._members(db, study):
                rungs = json.loads(row["rungs"])
                until = rungs[row["rung"]] if row["rung"] < len(rungs) else row["stop"]
                then = "paused" if row["rung"] < len(rungs) else "done"
                claim = Claim(row["hash"], row["name"], json.loads(row["config"]), row["parent"], until, then)
                if len(out) == limit or (out and alike and not alike(out[0], claim)):
                    continue
                if row["dropped"] or not self._is_free(db, row, worker):
                    continue
                own = (worker, process["host"], process["pid"], json.dumps(process), time.time())
                db.execute(_CLAIM, (*own, row["hash"]))
                out.append(claim)
        return out

    def _is_free(self, db: sqlite3.Connection, row: sqlite3.Row, worker: str) -> bool:
        """Returns True if nobody works on a run, and it can begin. Runs that never can are recorded as failed."""
        if row["state"] == "planned":
            found = db.execute("SELECT state FROM runs WHERE hash = ?", (row["parent"],)).fetchone()
            parent = "done" if row["parent"] is None or found is None else found["state"]
            if parent in ("failed", "diverged"):
                self._fail(db, row["hash"], f"the run that it continues, {row['parent']}, has {parent}")
            return parent == "done"
        if row["state"] != "running" or row["worker"] == worker or not self._is_dead(row):
            return False
        step, _ = self.progress(row["hash"])
        claims = 1 if step > row["claimed_step"] else row["claims"] + 1
        db.execute("UPDATE runs SET claims = ?, claimed_step = ? WHERE hash = ?", (claims, step, row["hash"]))
        if claims > FRUITLESS:
            last = f"the last one was process {row['pid']} of {row['host']}"
            self._fail(db, row["hash"], f"{FRUITLESS} workers died in a row without a further step; {last}")
        return claims <= FRUITLESS

    def _fail(self, db: sqlite3.Connection, key: str, why: str) -> None:
        change = "UPDATE runs SET state = 'failed', why = ?, ended = ?, worker = NULL WHERE hash = ?"
        db.execute(change, (why, time.time(), key))

    def _is_dead(self, row: sqlite3.Row) -> bool:
        """Returns True if the worker of a run has ended, or gives no sign of life."""
        alive = is_alive(row["holder"] or "")
        if alive is not None:
            return not alive
        sign, now = f"{row['worker']} {row['beat']}", time.monotonic()
        if self._seen.get(row["hash"], ("", 0.0))[0] != sign:
            self._seen[row["hash"]] = sign, now
        return now - self._seen[row["hash"]][1] > EXPIRY

    def beat(self, worker: str) -> None:
        """Renews all claims of a worker."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET beat = beat + 1 WHERE worker = ? AND state = 'running'", (worker,))

    def record(self, claim: Claim, worker: str, outcome: Outcome) -> bool:
        """Records the end of the work on a claim. Returns False if another worker has taken it over."""
        ended = time.time() if outcome.state in ENDED else None
        numbers = (outcome.step, outcome.loss, outcome.seconds, json.dumps(dict(outcome.metrics)))
        values = (outcome.state, outcome.why, *numbers, outcome.version, ended, claim.hash, worker)
        with self._transaction() as db:
            return db.execute(_RECORD, values).rowcount == 1

    def is_open(self, study: str) -> bool:
        """Returns True if a run of a study is planned or running."""
        with self._errors():
            rows = self._members(self._db, study)
        return any(row["state"] in ("planned", "running") and not row["dropped"] for row in rows)

    def retry(self, study: str, state: str) -> int:
        """Plans the runs of a study in a state ("failed" or "diverged") again. Returns their number."""
        self.rows(study)
        with self._transaction() as db:
            return db.execute(
                "UPDATE runs SET state = 'planned', why = '', claims = 0, ended = NULL WHERE state = ? AND hash IN "
                "(SELECT hash FROM members WHERE study = ?)",
                (state, study),
            ).rowcount

    def progress(self, name: str) -> tuple[int, float | None]:
        """Returns (step, loss) of the last whole line of metrics of a run; (0, None) without one."""
        with contextlib.suppress(UserError, OSError):
            lines = read_lines(self.workdir(name) / "metrics.jsonl", METRICS)
            if lines:
                loss = lines[-1].get("loss")
                return lines[-1]["step"], loss if isinstance(loss, int | float) else None
        return 0, None

    # Successive halving

    def halve(self, study: str) -> None:
        """Decides which paused runs continue, at every rung that all runs of the study have reached or failed before.

        Failed and diverged runs count as runs of their rung. The decision depends on the files of the runs alone, not
        on the order of work.

        Raises:
            UserError: a file of a run is damaged.
        """
        with self._transaction() as db:
            text = db.execute("SELECT halving FROM studies WHERE name = ?", (study,)).fetchone()["halving"]
            if text is None:
                return
            rule, rung = Halving(**json.loads(text)), 0
            while here := [row for row in self._members(db, study) if _reaches(row, rung)]:
                undecided = [row for row in here if row["rung"] == rung and not row["dropped"]]
                if any(row["state"] in ("planned", "running") for row in undecided):
                    return
                undecided = [row for row in undecided if row["state"] in ("paused", "done")]
                if undecided:
                    self._decide(db, study, rule, rung, len(here), undecided)
                rung += 1

    def _decide(
        self, db: sqlite3.Connection, study: str, rule: Halving, rung: int, entrants: int, runs: list[sqlite3.Row]
    ) -> None:
        """Lets the best runs of a rung continue, and stops the others."""
        steps = {row["hash"]: json.loads(row["rungs"])[rung] for row in runs}
        values = {key: rule.value(self.workdir(key), step) for key, step in steps.items()}
        for place, key in enumerate(rule.ranked(values), 1):
            if place <= rule.kept(entrants):
                db.execute("UPDATE members SET rung = ? WHERE study = ? AND hash = ?", (rung + 1, study, key))
                db.execute("UPDATE runs SET state = 'planned' WHERE hash = ? AND state = 'paused'", (key,))
                continue
            value = values[key]
            shown = f"{rule.metric} {'missing' if value is None else format(value, '.4g')}"
            why = f"halving: rank {place} of {entrants} at step {steps[key]} ({shown})"
            db.execute("UPDATE members SET dropped = 1 WHERE study = ? AND hash = ?", (study, key))
            change = "UPDATE runs SET state = 'stopped', why = ?, ended = ? WHERE hash = ? AND state = 'paused'"
            db.execute(change, (why, time.time(), key))


def _reaches(row: sqlite3.Row, rung: int) -> bool:
    """Returns True if a run of a study takes part in a rung, though it may have failed on its way."""
    return row["rung"] >= rung and len(json.loads(row["rungs"])) > rung
