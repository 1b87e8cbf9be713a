"""Studies: hashes of content, names, and mistakes that are found before any run starts."""

import ast
import pathlib
import re

import pytest
import tiny_runs

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import build, load, read_file
from ssljax.scaling.cost import Costs
from ssljax.scaling.generators import GENERATORS
from ssljax.scaling.halving import Halving
from ssljax.scaling.study import StudyConfig, make_study, read_study, run_hash, run_names

CONFIG = {**tiny_runs.LM, "data": {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}}
COSTS = Costs()
ROOT = pathlib.Path(__file__).parents[2]


def study(**group):
    return make_study(CONFIG, schema.build(StudyConfig, group, "study"), "study", COSTS).runs


def test_a_hash_is_of_the_content():
    first = build(CONFIG)
    assert run_hash(first) == run_hash(build({**CONFIG, "log": {"every_steps": 7}, "mesh": {"data": 1}, "evals": {}}))
    assert run_hash(first) != run_hash(build({**CONFIG, "seed": 1}))
    assert first.hash() == build({**CONFIG, "steps": 3}).hash(), "a longer run with a constant rate continues it"
    assert run_hash(first) != run_hash(build({**CONFIG, "steps": 3})), "but it is another result"


def test_runs_are_configs_with_their_changes():
    runs = study(grid=[("optimizer.learning_rate", [1e-3, 1e-2])], seeds=2)
    assert [run.name for run in runs] == [f"learning_rate={lr},seed={s}" for lr in (0.001, 0.01) for s in (0, 1)]
    for run in runs:
        assert run.config.optimizer.learning_rate == run.changes["optimizer.learning_rate"]
        assert run.config.seed == run.changes["seed"]
    assert len({run.hash for run in runs}) == 4
    (alone,) = study()
    assert alone.name == "run" and alone.changes == {}


def test_a_study_is_the_same_at_every_start():
    group = {"random": [("optimizer.learning_rate", "loguniform(1e-4,1e-2)")], "runs": 3, "study_seed": 5}
    assert [run.hash for run in study(**group)] == [run.hash for run in study(**group)]
    assert {run.hash for run in study(**group)} <= {run.hash for run in study(**{**group, "runs": 6})}


def test_groups_are_axes_too():
    runs = study(grid=[("optimizer.name", ["adamw", "lion"]), ("optimizer.learning_rate", [1e-3])])
    assert [type(run.config.optimizer).__name__ for run in runs] == ["AdamW", "Lion"]
    assert all(run.config.optimizer.learning_rate == 1e-3 for run in runs)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (
            {"grid": [("optimizer.learning_rat", [1])]},
            r"optimizer.learning_rat: unknown key.*'learning_rate'",
        ),
        ({"grid": [("optimizer.learning_rate", ["x"])]}, r"optimizer.learning_rate: got 'x' \(str\), must be a number"),
        ({"grid": [("log.every_steps", [1, 2])]}, r"log.every_steps=1 and 2 are the same run"),
        ({"grid": [("seed", [1, 1])]}, r"study: the run 'run' occurs twice"),
        ({"grids": []}, r"study.grids: unknown key; did you mean 'grid'"),
        ({"seeds": 0}, r"study.seeds: got 0, must be >= 1"),
    ],
)
def test_mistakes_are_one_line(group, said):
    with pytest.raises(UserError, match=said):
        study(**group)


@pytest.mark.parametrize("name", ["", "runs", "a/b", "..", "x" * 101])
def test_names_of_studies_are_names_of_folders(name):
    with pytest.raises(UserError, match="--name: got"):
        make_study(CONFIG, StudyConfig(), name, COSTS)


def test_names_of_runs_differ_and_are_names_of_files():
    assert run_names([{"a.x": 1, "b.x": 2}, {"a.x": 2, "b.x": 1}]) == ["a.x=1,b.x=2", "a.x=2,b.x=1"]
    assert run_names([{"data.source": "npz:/a b"}, {"data.source": "npz:/a/b"}]) == [
        "source=npz_a_b",
        "source=npz_a_b~2",
    ]
    assert run_names([{"x": 1e-5}, {"x": 3e9}, {"x": 0.25}]) == ["x=1e-5", "x=3e9", "x=0.25"]
    assert len(max(run_names([{"k": "v" * 500}, {"k": "w" * 500}]))) <= 105


def test_a_study_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"def get_config(arg=''):\n    return {{**{CONFIG!r}, 'study': "
        f"{{'grid': [('optimizer.learning_rate', [1e-3, 1e-2])], 'halving': {{'first': '50%'}}}}}}\n"
    )
    found = read_study(str(file))
    assert found.name == "mine" and len(found.runs) == 2 and found.halving == Halving(first="50%")
    found = read_study(str(file), [("study.seeds", "3"), ("seed", "5")], {"name": "other"})
    assert found.name == "other" and [run.config.seed for run in found.runs] == [5, 6, 7] * 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs/scaling").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_shipped_studies(path):
    """Each makes its runs, says the commands in its docstring, and is a config for `ssljax train` too."""
    source = read_file(str(path))["data"].get("source")
    smaller = [("data.source", "builtin:python-docs")] if source == "builtin:python-code" else []
    found = read_study(str(path), smaller, costs=COSTS)
    assert found.name == path.stem and len(found.runs) >= 3
    name = path.relative_to(ROOT)
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"\n    ssljax sweep --config {name} --workdir runs/scaling --dry-run\n" in docstring
    config, remarks = load(str(path), smaller)
    assert config.steps and remarks == ["study: left out, the runs of a study are those of `ssljax sweep`"]


def test_the_page_lists_the_keys():
    text = (ROOT / "docs/howto/sweeps.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", text.partition("StudyConfig -->")[2].partition("\n\n`")[0], re.MULTILINE
    )
    assert dict(rows) == {key: schema.key_doc(StudyConfig, key) for key in schema.keys(StudyConfig)}
    assert set(re.findall(r"^\| `(\w+)` \| (?:sizes|budgets)", text, re.MULTILINE)) == set(GENERATORS)
