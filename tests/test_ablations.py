"""The ablations: their configs are studies whose docstrings have the commands, their page has a place for each, and
the exact numbers beside the measured ones are right."""

import ast
import importlib
import itertools
import math
import pathlib

import numpy as np
import pytest

from ssljax.config import load, read_file
from ssljax.data import synthetic
from ssljax.scaling.cost import Costs
from ssljax.scaling.study import read_study

ROOT = pathlib.Path(__file__).parent.parent
PATHS = sorted((ROOT / "configs/ablations").glob("[!_]*.py"))
COSTS = Costs()


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ablations")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_a_study(path, script, request):
    if "SSLJAX_DATA" in str(read_file(str(path))["data"].get("source")):
        request.getfixturevalue("shared_data")
    study = read_study(str(path), costs=COSTS)
    assert study.name == path.stem and len(study.runs) >= 4
    name = path.relative_to(ROOT)
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"\n    ssljax sweep --config {name} --workdir runs/ablations" in docstring
    assert f"\n    python benchmarks/ablations.py {path.stem} --store runs/ablations" in docstring
    config, remarks = load(str(path))
    assert config.steps and remarks == ["study: left out, the runs of a study are those of `ssljax sweep`"]


def test_each_has_a_section(script):
    page = script.PAGE.read_text()
    assert set(script.ABLATIONS) == {path.stem for path in PATHS}
    for name in script.ABLATIONS:
        assert (
            f"<!-- table: python benchmarks/ablations.py {name} -->" in page and f"configs/ablations/{name}.py" in page
        )


def test_cells_of_architectures(script, monkeypatch):
    """Five architectures, each with denoising and with language modelling, in the order of the paper's table."""
    monkeypatch.syspath_prepend(str(ROOT / "configs/ablations"))
    cells = importlib.import_module("architectures").CELLS
    names = [script.architecture(model, objective) for model, objective in cells]
    assert names[::2] == names[1::2] == list(dict.fromkeys(names)) and len(names) == 10
    assert [name.startswith("encoder-decoder") for name in names[::2]] == [True] * 3 + [False] * 2
    assert all((task["name"] == "span_corruption") == (i % 2 == 0) for i, (_, task) in enumerate(cells))


def test_entropies_of_a_window_by_brute_force(script):
    chain, pairs = synthetic.transitions(), synthetic.stationary()
    causal, masked = script.conditional_entropies(3)
    probability = {(a, b, c): pairs[a, b] * chain[a, b, c] for a, b, c in itertools.product(range(16), repeat=3)}
    left, others = 0.0, [0.0, 0.0, 0.0]
    for word, p in probability.items():
        if p > 0:
            first = pairs[word[0]].sum()
            left -= p * math.log(p / first) / 2
            for i in range(3):
                same = sum(probability[(*word[:i], letter, *word[i + 1 :])] for letter in range(16))
                others[i] -= p * math.log(p / same)
    assert causal == pytest.approx(left, rel=1e-9) and masked == pytest.approx(np.mean(others), rel=1e-9)
    assert script.conditional_entropies(5)[0] == pytest.approx(synthetic.floor(5), rel=1e-9)


@pytest.mark.parametrize("information", [1.0, 6.0])
def test_the_bound_of_gaussians_is_below_both_limits_and_reaches_them(information, script):
    bounds = {k: script.gaussian_bound(information, k) for k in (1, 64, 1024)}
    for negatives, bound in bounds.items():
        assert bound < min(information, math.log(negatives + 1)) + 0.05  # the error of 4,096 pairs
    assert bounds[1] < bounds[64] < bounds[1024] + 0.02
    if information == 1.0:
        assert bounds[1024] > 0.95  # far fewer nats than log(1025): the bound is tight
