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
