"""The printed table of evaluations."""

import pytest

from ssljax.report import Table, print_table

TABLES = {
    "probes": (("linear_10", "linear_100"), ("untrained", "raw", "majority", "chance"), "97.04 ± 0.31 %"),
    "text": (("perplexity", "pseudo_perplexity"), ("untrained", "unigram", "bigram"), "247.624"),
}


@pytest.mark.parametrize("table", TABLES)
def test_names_are_whole_in_a_narrow_window(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names, controls, cell = TABLES[table]
    columns = ["evaluation", "metric", "trained", *controls, "verdict"]
    cells = [cell] * (1 + len(controls))
    rows = [[name, "pseudo bits per byte", *cells, "does not beat raw, majority"] for name in names]
    print_table(Table(columns, rows, ["linear_10: L-BFGS"]))
    printed = capsys.readouterr().out
    words = printed.replace("┃", " ").replace("│", " ").split()
    assert "…" not in printed and {*names} <= {*words}
    assert max(map(len, printed.splitlines())) <= 80


def test_runs_become_columns_where_words_would_break(capsys, monkeypatch):
    """Nine columns at 80 characters: a heading was printed as "objecti ve.temp erature"."""
    metrics = [f"few_shot accuracy {n} shot ↑" for n in (1, 5, 10)]
    columns = [
        "run",
        "objective.temperature",
        "seeds",
        *metrics,
        "knn accuracy ↑",
        "linear accuracy ↑",
        "training loss",
    ]
    rows = [[f"t{i}-s0", f"0.{i}", "2", *["52.0 ± 1.3 %"] * 5, "3.811 ± 0.03"] for i in range(12)]
    for width in (60, 80, 160, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(Table(columns, rows, []))
        printed = capsys.readouterr().out
        words = printed.replace("┃", " ").replace("│", " ").split()
        assert max(map(len, printed.splitlines())) <= width
        assert {"objective.temperature", "few_shot", *(row[0] for row in rows)} <= {*words}
        assert words.count("3.811") == words.count("0.03") == len(rows)
        side_by_side = any("run" in line and "objective.temperature" in line for line in printed.splitlines())
        assert side_by_side == (width >= 160)
