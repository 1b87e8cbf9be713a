"""The printed table of evaluations."""

from ssljax.report import Table, print_table


def test_names_and_values_are_whole_in_a_narrow_window(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ["linear_10", "linear_100", "pseudo_perplexity"]
    columns = ["evaluation", "metric", "trained", "untrained", "raw", "majority", "chance", "verdict"]
    cells = ["97.04 ± 0.31 %", "88.70 ± 0.60 %", "91.71 %", "10.60 %", "10.00 %", "does not beat raw, majority"]
    print_table(Table(columns, [[name, "accuracy", *cells] for name in names], ["linear_10: L-BFGS"]))
    printed = capsys.readouterr().out
    assert "…" not in printed and all(f" {name} " in printed for name in names)
    assert max(map(len, printed.splitlines())) <= 80
