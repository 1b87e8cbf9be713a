"""The documentation agrees with the code: tables, links, commands and examples."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from daily import daily

from ssljax import cli, report, run, runs, starter
from ssljax.base import schema
from ssljax.config import RunConfig, load
from ssljax.interop import export as hf_export
from ssljax.objectives import REGISTRY as OBJECTIVES
from ssljax.parallel.hardware import CHIPS
from ssljax.parallel.rules import RULES
from ssljax.runs import export, inspection
from ssljax.runs.card import Card
from ssljax.scaling.study import read_study

ROOT = pathlib.Path(__file__).parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, ROOT / "launch/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE_BY_RUNS = {"docs/results.md", "docs/quickstart.png"}  # missing before the first run
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def script(path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_page():
    return script("docs/make_config_page.py")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def shell_lines(page):
    """Commands in the shell blocks of a page; commands joined by && are separate."""
    return [part.strip() for block in blocks(page, "bash") for line in block.splitlines() for part in line.split("&&")]


def words_of(line):
    """Words of a command `ssljax ...` without environment variables; [] for other commands."""
    match = re.fullmatch(r"(?:\w+=\S+ )?(ssljax .*)", line)
    return shlex.split(match[1]) if match else []


def commands(page):
    """Words of each `ssljax ...` command in the shell blocks of a page."""
    return [words for words in map(words_of, shell_lines(page)) if words]


@pytest.mark.parametrize(("page", "count"), [("guarantees", 40), ("odd_input", 25)])
def test_pages_of_guarantees_name_tests(page, count):
    """Each row names a file of tests, and perhaps a test in it or an expression that selects some."""
    rows = re.findall(r"^\| .*? \| (.*?) \|", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE)
    rows = [row for row in rows if row not in ("test", "---")]
    assert len(rows) >= count
    for row in rows:
        names = re.findall(r"`([\w/]+\.py)(?:::(\w+)| -k (\w+))?`", row)
        assert names, row
        for file, test, words in names:
            text = (ROOT / "tests" / file).read_text()
            assert f"def {test}(" in text if test else words in text, (file, test, words)


def test_tables_of_keys_equal_the_code():
    module = config_page()
    text = module.PAGE.read_text()
    assert module.page(text) == text, "stale: run python docs/make_config_page.py"


def test_a_stale_page_is_noticed():
    module = config_page()
    text = module.PAGE.read_text()
    assert "| `temperature` | number, > 0 | `0.1` |" in text
    changed = text.replace("| `temperature` | number, > 0 | `0.1` |", "| `temperature` | number, > 0 | `0.7` |")
    assert module.page(changed) != changed


def test_every_configuration_class_has_a_section():
    listed = config_page().titles()
    found = [RunConfig]
    for cls in found:
        assert cls in listed, cls
        groups = {group for key in schema.keys(cls) for group in schema.groups(cls, key).values()}
        found += groups.difference(found)


@pages
def test_links_lead_somewhere(page):
    slug = config_page().slug
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if str(file.relative_to(ROOT)) in MADE_BY_RUNS and not file.exists():
            continue
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


@pages
def test_named_files_exist(page):
    named = re.findall(r"`((?:configs|docs|tests|benchmarks|ssljax)/[\w./]+\.\w+)`", page.read_text())
    named += re.findall(r"\b((?:configs|tests|benchmarks)/[\w/]+\.py)", page.read_text())
    for name in named:
        assert (ROOT / name).exists() or name in MADE_BY_RUNS, f"{page.name}: {name}"


def done(options, overrides):
    """A command that is not run here."""
    return 0


def swept(options, overrides):
    """Makes the runs of a command `ssljax sweep`; none is trained."""
    cli.sweeps._check(options, overrides)
    cli.sweeps._parameters(options.slurm)
    if options.config is not None:
        assert read_study(options.config, overrides, cli.sweeps._group(options)).runs
    return 0


@pytest.mark.parametrize("page", daily(PAGES, 2), ids=lambda page: page.name)
def test_commands_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for module in (cli.training, cli.models, cli.text):
        monkeypatch.setattr(module, "compilation_cache", lambda: None)
    monkeypatch.setattr(cli.training, "start", lambda options: None)
    monkeypatch.setattr(starter, "write_starter", lambda name, *args: pathlib.Path(f"{name}.py"))
    monkeypatch.setattr(run, "train", lambda *args, **options: None)
    monkeypatch.setattr(runs, "evaluate", lambda *args: None)
    monkeypatch.setattr(runs, "generate", lambda *args, **options: [])
    monkeypatch.setattr(runs, "fill_mask", lambda *args: [])
    monkeypatch.setattr(runs, "embed", lambda *args, **options: runs.Embedded(np.zeros((1, 2), np.float32), ["a"]))
    monkeypatch.setattr(runs, "write_embedded", lambda embedded, path: path)
    for name in ("_report", "_views"):
        monkeypatch.setattr(cli.training, name, lambda options, overrides: 0)
    for name, call in (("_sweep", swept), ("_runs", done), ("_compare", done)):
        monkeypatch.setattr(cli.sweeps, name, call)
    model = types.SimpleNamespace(hf_config={"model_type": "gpt2"}, parameters=1)
    monkeypatch.setattr(hf_export, "convert", lambda *args: model)
    monkeypatch.setattr(export, "export", lambda *args: export.Exported(model, Card({}, "")))
    monkeypatch.setattr(inspection, "inspect", lambda config: inspection.Inspection(*[report.Table([], [], [])] * 3))
    examples(tmp_path, monkeypatch, [ROOT / "README.md", ROOT / "docs/extending.md", page])
    named = ("config.md", "evaluation.md", "extending.md", "generation.md")
    assert commands(page) or page not in (ROOT / "README.md", CONTRIBUTING, *(ROOT / "docs" / name for name in named))
    for words in commands(page):
        if "--config" in words and (tmp_path / words[words.index("--config") + 1]).is_file():
            words[words.index("--config") + 1] = str(tmp_path / words[words.index("--config") + 1])
        if words[1] == "fit":  # fewer refits, and results in a folder of the test
            words = [
                "--out=" + str(tmp_path) if before == "--out" else word for before, word in zip(["", *words], words)
            ]
            words = [word for word in words if word != "--out"] + ["--bootstrap=20"]
        assert cli.main(words[1:]) == 0, words


# The page of families runs all reference models once more, as tests/interop/test_parity.py does.
FOR_CONTRIBUTORS = [
    pytest.param(line, marks=pytest.mark.full if "make_families_page" in line else ())
    for line in shell_lines(CONTRIBUTING)
    if not line.startswith("ssljax ")
]


@pytest.mark.parametrize("line", FOR_CONTRIBUTORS)
def test_commands_for_contributors(line, monkeypatch, tmp_path):
    """Commands of CI are skipped, `pytest` commands collect tests, and scripts that write pages change nothing."""
    if line in (ROOT / ".ci/run").read_text().splitlines():
        return
    words = shlex.split(line)
    if words[0] == "pytest":
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "--collect-only", "-q"]
        done = subprocess.run([*command, *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "::test_" in done.stdout, done.stdout + done.stderr
        return
    assert words[0] == "python" and words[1].startswith("docs/"), f"no test runs {line!r}"
    maker = script(words[1])
    page, copy = maker.PAGE, tmp_path / maker.PAGE.name
    copy.write_text(page.read_text())
    monkeypatch.setattr(maker, "PAGE", copy)
    monkeypatch.setattr(sys, "argv", words[1:])
    assert maker.main() == 0
    assert copy.read_text() == page.read_text(), f"stale: run {line}"


def test_every_objective_has_a_section_with_its_config():
    text = (ROOT / "docs/objectives.md").read_text()
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert set(sections) == set(OBJECTIVES)
    for name, section in sections.items():
        config, _ = load(str(ROOT / re.search(r"Start from `(configs/.*?\.py)`", section)[1]))
        assert config.to_dict()["objective"]["name"] == name


def test_tables_of_rules_and_peaks_equal_the_code():
    rows = re.findall(r"^\| `(\w+)` \| ([a-z x;]+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    rules = {name: "; ".join(" x ".join(c) for c in candidates) or "replicated" for name, candidates in RULES.items()}
    assert {name: text for name, text in rows if name in rules} == rules
    text = (ROOT / "docs/evaluation.md").read_text().partition("| pattern of `device_kind`")[2]
    peaks = re.findall(r"^\| `(.*)` \| ([\d.]+) \|$", text, re.MULTILINE)
    assert [(p.replace(r"\|", "|"), float(v) * 1e12) for p, v in peaks] == [
        (c.pattern, c.bfloat16) for c in CHIPS if c.name != "cpu"
    ]


def examples(folder, monkeypatch, sources=PAGES):
    """Writes the files that the pages show, so that they can be imported."""
    written = set()
    for page in sources:
        for block in blocks(page, "python"):
            name = re.match(r"# ((?:my_package/)?\w+\.py)\n", block)
            if name:
                file = folder / name[1]
                file.parent.mkdir(exist_ok=True)
                file.write_text(block)
                written.add(name[1].partition("/")[0].removesuffix(".py"))
    monkeypatch.syspath_prepend(folder)
    for name in [n for n in sys.modules if n.partition(".")[0] in written]:
        monkeypatch.delitem(sys.modules, name)


def test_the_example_in_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs/python.md", "python")
    names = {}
    exec(block, names)
    assert names["features"].shape == (128, 32) and len(names["norms"]) == 2
    assert "[['run', '2', " in capsys.readouterr().out, "two seeds in one row"


def test_the_examples_of_plug_ins_train_together(tmp_path, monkeypatch):
    examples(tmp_path, monkeypatch)
    overrides = {"batch_size": "16", "microbatches": "2", "log.every_steps": "5", "log.trackers": "()"}
    config, _ = load(str(tmp_path / "my_package/config.py"), [*overrides.items(), ("log.progress", "false")])
    lines = run.train(config, tmp_path / "run").evaluations
    assert {line["of"] for line in lines if line["eval"] == "nearest"} == {"trained", "untrained", "raw", "majority"}
    losses = [json.loads(x)["loss"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[0] == pytest.approx(1.386, abs=0.05)  # log 4: the head starts at zero
    assert losses[-1] < losses[0]


def test_the_first_example_fits_the_quickstart(tmp_path, monkeypatch):
    examples(tmp_path, monkeypatch)
    config, remarks = load(str(ROOT / "configs/quickstart.py"), [("objective.name", "rotation:Rotation")])
    assert "were dropped" in remarks[0]
    program = runs.assemble(config, jax.devices()[:1]).program
    assert "loss" in program.shapes.meters


def test_the_position_scheme_fits_the_quickstart(tmp_path, monkeypatch):
    examples(tmp_path, monkeypatch)
    override = ("model.position_bias", "my_package.positions:LogDistance")
    program = runs.assemble(load(str(ROOT / "configs/quickstart.py"), [override])[0], jax.devices()[:1]).program
    assert program.shapes.params["encoder"]["stack"]["log_distance"].shape == (4,)  # one rate per head


def test_the_config_of_the_config_page_is_sound(tmp_path):
    block = next(b for b in blocks(ROOT / "docs/config.md", "python") if b.startswith("# my_config.py"))
    file = tmp_path / "my_config.py"
    file.write_text(block)
    assert runs.assemble(load(str(file))[0], jax.devices()[:1]).steps == 225  # 20 epochs of 1,437 at 128
