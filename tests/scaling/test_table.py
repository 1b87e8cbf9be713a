"""Tables: found by name, and one clear line, or a warning with the fit, for each kind of bad table."""

import pathlib

import numpy as np
import pytest
from test_driver import prepared

from ssljax import scaling
from ssljax.base.errors import UserError
from ssljax.scaling.laws import create
from ssljax.scaling.ledger import Outcome
from ssljax.scaling.table import checked, read, renamed

GOOD = {
    "params": np.repeat([1e7, 3e7, 1e8, 3e8], 4),
    "tokens": np.tile([1e9, 3e9, 1e10, 3e10], 4),
}
GOOD["loss"] = 1.8 + 480 / GOOD["params"] ** 0.35 + 2000 / GOOD["tokens"] ** 0.37


def written(tmp_path, columns, name="runs.csv"):
    """A CSV file of columns."""
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def changed(column, index, value):
    """The good table with one other cell."""
    values = list(GOOD[column])
    values[index] = value
    return {**GOOD, column: values}


def without(column):
    return {name: values for name, values in GOOD.items() if name != column}


REFUSED = {
    "missing column": (
        {**without("params"), "parms": GOOD["params"]},
        "has no column 'params'; did you mean 'parms'? (columns: tokens, loss, parms)",
    ),
    "other case": (
        {**without("loss"), "Loss": GOOD["loss"]},
        "has no column 'loss'; did you mean 'Loss'? (columns: params, tokens, Loss)",
    ),
    "text in a number": (changed("loss", 4, "2.9x"), "row 6, column 'loss': got '2.9x', must be a number"),
    "zero loss": (changed("loss", 0, 0.0), "row 2, column 'loss': got 0, must be > 0"),
    "negative loss": (changed("loss", 3, -1.0), "row 5, column 'loss': got -1, must be > 0"),
    "infinite loss": (changed("loss", 3, "inf"), "row 5, column 'loss': got inf, must be finite and > 0"),
    "negative size": (changed("params", 2, -5e6), "row 4, column 'params': got -5e+06, must be > 0"),
    "constant column": (
        {**GOOD, "params": np.full(16, 1e8)},
        "column 'params' is 1e+08 in all rows; chinchilla needs at least 3 different ones",
    ),
    "two values": (
        {**GOOD, "params": np.repeat([1e7, 1e8], 8)},
        "column 'params' has 2 different values; chinchilla needs at least 3 different ones",
    ),
    "three points": (
        {name: values[:3] for name, values in GOOD.items()},
        "3 rows are too few for chinchilla, which has 5 parameters: at least 6 are needed",
    ),
    "all empty": ({**GOOD, "loss": [""] * 16}, "0 rows are too few for chinchilla"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_tables_are_refused_in_one_line(case, tmp_path):
    columns, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        checked(read(written(tmp_path, columns)), create("chinchilla"))
    assert message in str(error.value) and "\n" not in str(error.value) and "runs.csv" in str(error.value)


WARNED = {
    "NaN": (changed("loss", 4, "nan"), "1 rows without a number in loss are left out (rows 6)"),
    "empty cell": (changed("tokens", 7, ""), "1 rows without a number in tokens are left out (rows 9)"),
    "duplicated rows": (
        {name: [*values, values[3], values[3]] for name, values in GOOD.items()},
        "2 rows repeat another row (such as rows 5, 18, 19)",
    ),
    "tokens in millions beside flops": (
        {**GOOD, "tokens": GOOD["tokens"] / 1e6, "flops": 6 * GOOD["params"] * GOOD["tokens"]},
        "flops / (6 params tokens) is 1e+06, not about 1",
    ),
    "tokens in billions, no flops": (
        {**GOOD, "tokens": GOOD["tokens"] / 1e9},
        "tokens / params is 1e-07: is one of the columns in millions or billions?",
    ),
    "budget in other units": (
        {**GOOD, "budget": 6e-18 * GOOD["params"] * GOOD["tokens"]},
        "budget / (6 params tokens) is 1e-18, not about 1",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_doubtful_tables_are_warned_of(case, tmp_path):
    columns, message = WARNED[case]
    notes = checked(read(written(tmp_path, columns)), create("chinchilla")).notes
    assert any(message in note for note in notes), notes


def test_a_good_table_has_no_notes_and_its_warnings_reach_the_fit(tmp_path):
    extra = {**GOOD, "name": ["a"] * 16, "note": ["text"] * 16}
    assert checked(read(written(tmp_path, extra)), create("chinchilla")).notes == ()
    images = {**GOOD, "examples": GOOD["tokens"], "flops": 600 * GOOD["params"] * GOOD["tokens"]}
    assert checked(renamed(read(images), {"tokens": "examples"}), create("chinchilla")).notes == ()
    fit = scaling.fit("chinchilla", changed("loss", 4, "nan"), bootstrap=20)
    assert len(fit.rows) == 15 and "left out" in fit.warnings[0]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_seen_from_the_header(delimiter, tmp_path):
    path = written(tmp_path, GOOD)
    path.write_text(path.read_text().replace(",", delimiter))
    assert (checked(read(path), create("chinchilla")).observed == GOOD["loss"]).all()


def test_headers_with_other_delimiters_inside(tmp_path):
    for text in (
        'params,"a;b;c",loss\n1,x,2\n',
        'params;"loss, held-out, nats"\n1;2\n',
        "\nparams;loss, in nats\n1;2\n",
    ):
        (tmp_path / "runs.csv").write_text(text)
        assert list(read(tmp_path / "runs.csv").columns["params"]) == ["1"]


def test_mappings_rows_and_files_are_the_same_table(tmp_path):
    law = create("chinchilla")
    by_mapping = checked(read(GOOD), law)
    by_file = checked(read(str(written(tmp_path, GOOD))), law)
    by_rows = checked(read([dict(zip(GOOD, row)) for row in zip(*GOOD.values())]), law)
    for other in (by_file, by_rows):
        assert (other.observed == by_mapping.observed).all()
        assert all((other.columns[name] == by_mapping.columns[name]).all() for name in ("params", "tokens"))
    assert by_file.rows[0] == 2 and by_mapping.rows[0] == 0  # the line of a file, the index of a mapping


def test_columns_are_renamed_and_tokens_are_completed():
    table = {"N": GOOD["params"], "compute": 6 * GOOD["params"] * GOOD["tokens"], "loss": GOOD["loss"]}
    given = renamed(read(table), {"params": "N", "flops": "compute"})
    found = checked(given, create("chinchilla"))
    np.testing.assert_allclose(found.columns["tokens"], GOOD["tokens"], rtol=1e-14)
    assert "tokens = flops / (6 params)" in found.notes[0]
    with pytest.raises(UserError, match=r"has no column 'size'"):
        renamed(read(table), {"params": "size"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a header and at least one row"),
        ("params,tokens,loss\n", "must have a header and at least one row"),
        ("params,tokens,loss\n1,2\n", "line 2: has 2 cells, the header has 3"),
        ("params,params,loss\n1,2,3\n", "the header names 'params' twice"),
    ],
)
def test_files_that_are_no_tables(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)


def test_what_is_no_table():
    with pytest.raises(UserError, match="no such file"):
        read("absent.csv")
    with pytest.raises(UserError, match="must be the path of a CSV file"):
        read(3)
    with pytest.raises(UserError, match="columns must have one length"):
        read({"a": [1, 2], "b": [1]})


def test_segments_of_trunks_are_no_rows(monkeypatch):
    columns = {"run": ["a", "b", "c"], "state": ["done"] * 3, "trunk": [80, None, None], "loss": [3.0, 2.0, 1.0]}
    monkeypatch.setattr("ssljax.scaling.table.run_columns", lambda path: columns)
    table = read(pathlib.Path())
    assert table.columns["run"] == ["b", "c"] and "trunk" not in table.columns
    assert table.notes[0] == "1 segments of trunks are left out: they are beginnings of other runs"


def test_one_minus_a_column_is_a_column():
    table = read({"accuracy": [0.25, 0.5]})
    assert renamed(table, {"error": "1-accuracy"}).columns["error"] == [0.75, 0.5]
    with pytest.raises(UserError, match="has no column 'acuracy'; did you mean 'accuracy'"):
        renamed(table, {"error": "1-acuracy"})


def recorded(store, states, losses):
    """A ledger of runs that ended in these states, with held-out losses."""
    ledger = prepared(store, range(len(states)), "mine")
    claims = ledger.claim("mine", "w", limit=len(states))
    for claim, state, loss in zip(claims, states, losses):
        metrics = {} if loss is None else {"loss/loss": loss}
        ledger.record(claim, "w", Outcome(state, step=2, loss=9.0, seconds=1.0, metrics=metrics, version="1"))


def test_a_study_is_a_table_of_its_done_runs(tmp_path, monkeypatch):
    recorded(tmp_path / "a", ["done", "failed", "done"], [1.5, None, 2.5])
    table = read(tmp_path / "a/mine")
    assert table.columns["loss"] == [1.5, 2.5] and table.columns["seed"] == [0, 2]
    assert renamed(table, {"loss": "1-loss/loss"}).notes == ("1 of 3 runs are not done and left out",)
    assert table.notes == ("1 of 3 runs are not done and left out", "loss is loss/loss, on held-out data")
    recorded(tmp_path / "b", ["done", "done"], [1.5, None])
    assert read(tmp_path / "b").columns["loss"] == [9.0, 9.0]
    monkeypatch.chdir(tmp_path / "a/mine")
    assert len(read(".").columns["loss"]) == 2, "where one stands"
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other: has no ledger.sqlite, must be a store of `ssljax sweep`, or"):
        read(tmp_path / "other")
    recorded(tmp_path / "c", ["failed"], [None])
    with pytest.raises(UserError, match="has no run that is done"):
        read(tmp_path / "c")
