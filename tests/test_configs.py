"""Every shipped config opens its data, passes shape evaluation, and documents command, minutes and result."""

import ast
import dataclasses
import pathlib
import re

import jax
import pytest
from daily import at_most

from ssljax import run, runs
from ssljax.base import schema
from ssljax.config import load
from ssljax.interop.hf import flat
from ssljax.models.family import TransformerConfig

ROOT = pathlib.Path(__file__).parent.parent
OTHERS = ("ablations", "recipes", "scaling")  # tests/test_ablations.py, test_recipes.py, scaling/test_study.py
FILES = [p for p in (ROOT / "configs").rglob("[!_]*.py") if p.parent.name not in OTHERS]
PATHS = sorted(str(p.relative_to(ROOT)) for p in FILES)
VARIANTS = [
    *PATHS,
    *(f"configs/vision/{n}.py:data=mnist" for n in ("simclr", "dino", "swav", "mae", "classification")),
    "configs/text/causal_lm.py:data=classic-books",
    "configs/text/mlm.py:data=classic-books",
    "configs/finetune/images.py:start=random",
    "configs/finetune/texts.py:start=random",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs/scaling").glob("[!_]*.py")),
]


def needs(path, request):
    text = (ROOT / path.partition(":")[0]).read_text()
    shared = {"cifar10", "mnist", "classic-books", "noto"}
    if "_images" in text or "SSLJAX_DATA" in text or any(s in path for s in shared):
        request.getfixturevalue("shared_data")


@pytest.mark.parametrize("path", at_most(VARIANTS, 12))
def test_passes_shape_evaluation(path, request):
    needs(path, request)
    overrides = [("init_from", "None")] if "finetune" in path else []  # its run need not exist
    config, _ = load(str(ROOT / path), overrides)
    assembly = runs.assemble(config, jax.devices()[:1])
    assert assembly.steps > 0 and assembly.program.objective.flops(assembly.dataset.spec) > 0
    assert "loss" in assembly.program.shapes.meters  # the whole step has been evaluated for shapes


@pytest.mark.parametrize("path", PATHS)
def test_docstring_gives_command_minutes_and_result(path):
    """Numbers of the result must occur in docs/results.md, so docstrings change with new measurements."""
    text = (ROOT / path).read_text()
    assert text.count("\n") < 90
    docstring = ast.get_docstring(ast.parse(text))
    assert f"\n    ssljax train --config {path} --workdir runs/" in docstring
    assert re.search(r"^Time: \d+ minutes on (one CPU core|two CPU cores)", docstring, re.MULTILINE)
    result = re.search(r"^Result: (.*?;\sdocs/results.md,\ssection \d)", docstring, re.MULTILINE | re.DOTALL)
    numbers = re.findall(r"\d+\.\d+", result[1])
    assert numbers
    page = (ROOT / "docs/results.md").read_text()
    assert [number for number in numbers if number not in page] == []


STACK = set(schema.keys(TransformerConfig))
NAMED_BY_THE_EXPERIMENT = {".evals", ".data.keys", ".data.where"}


def leaves(values, path=""):
    """Distinct keys of a config. Keys of a stack of blocks count once, also for a model with several stacks. Groups
    whose entries are named by the experiment (evaluations, columns, filters) count as one key."""
    out = set()
    for key, value in values.items():
        here = key if key in STACK else f"{path}.{key}"
        nested = isinstance(value, dict) and value and here not in NAMED_BY_THE_EXPERIMENT
        out |= leaves(value, here) if nested else {here}
    return out


@pytest.mark.parametrize("path", PATHS)
def test_has_under_166_leaf_keys(path):
    config, _ = load(str(ROOT / path))
    # A vision-language model has an image and a text model; `simcse` has augmentations of images beside a text model.
    assert len(leaves(config.to_dict())) <= 165
    assert load(str(ROOT / path))[0].hash() == config.hash()
    assert schema.to_dict(config)["objective"]["name"]


def two_steps(path, workdir):
    start = {"init_from": "None"} if "finetune" in path else {}
    overrides = {
        **start,
        "steps": "2",
        "batch_size": "16",
        "log.every_steps": "1",
        "log.progress": "false",
        "evals": "{}",
    }
    config, _ = load(str(ROOT / path), list(overrides.items()))
    run.train(config, workdir)
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize("path", at_most(VARIANTS, 4))
def test_trains_two_steps_on_eight_devices(path, request, tmp_path):
    needs(path, request)
    two_steps(path, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("path", VARIANTS)
def test_trains_and_resumes_on_eight_devices(path, request, tmp_path):
    needs(path, request)
    two_steps(path, tmp_path)
    config, _ = load(
        str(ROOT / path),
        [("steps", "3"), ("batch_size", "16"), ("log.progress", "false"), ("evals", "{}")]
        + [("init_from", "None")] * ("finetune" in path),
    )
    run.train(config, tmp_path, resume="force")
    assert '"step": 3' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "pretraining"), [("images", "vision/simclr.py"), ("texts", "text/mlm.py:data=classic-books")]
)
def test_finetuning_starts_from_every_parameter_of_the_encoder(name, pretraining, request):
    """Both configs have one encoder; the variant that starts from random weights differs in the start only."""
    request.getfixturevalue("shared_data")
    before, after, random = (
        load(str(ROOT / "configs" / path))[0]
        for path in (pretraining, f"finetune/{name}.py", f"finetune/{name}.py:start=random")
    )
    shapes = [
        flat(runs.assemble(dataclasses.replace(c, init_from=None), jax.devices()[:1]).program.shapes.params["encoder"])
        for c in (before, after)
    ]
    learned, wanted = ({path: value.shape for path, value in s.items()} for s in shapes)
    assert wanted.items() <= learned.items() and not {p for p in learned if "stack" in p} - wanted.keys()
    assert after.init_from is not None and after.optimizer.layer_decay == 0.75 and random.init_from is None
    same = dataclasses.replace(after, init_from=None)
    assert dataclasses.replace(same, optimizer=random.optimizer) == random
