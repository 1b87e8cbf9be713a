"""User mistakes: one line with the key or file, the value and the correct form; exit code 2; no traceback."""

import gzip
import io
import json
import pathlib
import re
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import tiny_runs
from PIL import Image

import ssljax
from ssljax import cli, models
from ssljax.base.errors import UserError
from ssljax.config import arguments, load
from ssljax.layers import attention

BASE = {
    **tiny_runs.LM,
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits"},
    "steps": 1,
    "batch_size": 32,
}
LM = {**BASE, "model": tiny_runs.LM["model"], "objective": tiny_runs.LM["objective"]}


@pytest.fixture
def ssljax_train(tmp_path, capsys):
    """Runs `ssljax train` on a config in this process and returns (exit code, text on stderr)."""

    def call(config, *overrides, workdir=None):
        file = tmp_path / "config.py"
        file.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
        capsys.readouterr()
        code = cli.main(["train", "--config", str(file), "--workdir", str(workdir or tmp_path / "run"), *overrides])
        return code, capsys.readouterr().err

    return call


def refused(result, *patterns):
    code, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err, err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), f"{pattern!r} not in {lines[0]!r}"


CASES = {
    "unknown key": (("--config.optimizer.learning_rat=1",), r"optimizer\.learning_rat: unknown key.*'learning_rate'"),
    "unknown group": (("--config.optimiser.name=sgd",), r"optimiser: unknown key.*'optimizer'"),
    "unknown nested key": (("--config.objective.augment.augment.jiter=1",), r"augment\.jiter: unknown key.*'jitter'"),
    "wrong type": (("--config.batch_size=many",), r"batch_size: got 'many'.*integer"),
    "out of range": (("--config.objective.temperature=-1",), r"objective\.temperature: got -1.*> 0"),
    "bad choice": (("--config.model.pool=max",), r"model\.pool: got 'max'.*'cls', 'mean'"),
    "no steps": (("--config.steps=0",), r"steps: got 0, must be at least 1"),
    "no epochs": (("--config.steps=0 epochs",), r"steps: got '0 epochs', must be at least 1"),
    "bad duration": (("--config.steps=3 fortnights",), r"steps: got '3 fortnights'"),
    "unknown objective": (("--config.objective.name=simclrr",), r"unknown objective 'simclrr'.*'simclr'.*causal_lm"),
    "unknown model": (("--config.model.name=vitt",), r"unknown model 'vitt'.*'vit'.*bert"),
    "unknown source": (("--config.data.source=bultin:digits",), r"data\.source.*bultin.*builtin"),
    "unknown builtin": (("--config.data.source=builtin:digit",), r"digit.*digits"),
    "unknown evaluation": (("--config.evals.knnn.k=3",), r"evals\.knnn.*unknown evaluation 'knnn'.*'knn'"),
    "unknown optimizer": (("--config.optimizer.name=adam",), r"unknown optimizer 'adam'.*adamw"),
    "model of another kind": (("--config.model.name=gpt", "--config.model.preset=none"), r"model"),
    "batch and devices": (("--config.batch_size=12",), r"batch_size: got 12, must be a multiple of 8"),
    "batch and slices": (("--config.microbatches=3",), r"microbatches: got 3, must divide batch_size 32"),
    "mesh": (("--config.mesh.data=3",), r"mesh: data=3 does not fit 8 devices"),
    "image and patch": (("--config.model.patch_size=3",), r"model\.patch_size: 3 does not divide the image size 8x8"),
    "heads and width": (("--config.model.heads=3",), r"model.*heads.*3.*16"),
    "missing file": (("--config.data.source=npz:/nowhere/x.npz",), r"/nowhere/x\.npz"),
    "unset variable": (("--config.data.source=npz:$NOT_SET_HERE/x.npz",), r"NOT_SET_HERE"),
    "unknown split": (("--config.data.split=training",), r"training.*train"),
    "empty split": (("--config.data.split=train[:0]",), r"train\[:0\].*"),
    "labels missing a class": (
        ("--config.data.num_classes=5", "--config.objective.name=classification"),
        r"num_classes.* 10 classes",
    ),
    "pattern without parameter": (("--config.optimizer.lr_multipliers={'decoder':0.1}",), r"decoder"),
    "argument without value": (("--config.steps",), r"--config\.steps: has no value"),
    "unknown argument": (("--stepz=3",), r"--stepz=3: unknown argument"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_in_the_config(ssljax_train, case):
    overrides, pattern = CASES[case]
    refused(ssljax_train(BASE, *overrides), pattern)


def test_missing_config_file(capsys, tmp_path):
    code = cli.main(["train", "--config", str(tmp_path / "none.py"), "--workdir", str(tmp_path / "run")])
    refused((code, capsys.readouterr().err), r"no file .*none\.py")


def test_arguments_of_a_config():
    assert arguments("depth=6", depth=12, data=("cifar10", "mnist")) == {"depth": 6, "data": "cifar10"}
    assert arguments("data=mnist", data=("cifar10", "mnist")) == {"data": "mnist"}
    for text, message in (
        ("data=mnst", r"argument data: got 'mnst'; did you mean 'mnist'\? \(allowed: cifar10, mnist\)"),
        ("date=mnist", r"argument 'date=mnist' is not key=value with a key of data"),
        ("mnist", r"argument 'mnist' is not key=value"),
    ):
        with pytest.raises(UserError, match=message):
            arguments(text, data=("cifar10", "mnist"))


def test_config_without_get_config(capsys, tmp_path):
    (tmp_path / "c.py").write_text("x = 1\n")
    code = cli.main(["train", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "run")])
    refused((code, capsys.readouterr().err), r"c\.py: has no get_config")


@pytest.mark.parametrize("returned", ["None", "3", "['model']"])
def test_config_that_returns_no_config(capsys, tmp_path, returned):
    (tmp_path / "c.py").write_text(f"def get_config(arg=''):\n    return {returned}\n")
    code = cli.main(["train", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "run")])
    refused((code, capsys.readouterr().err), r"c\.py: get_config returned .*, must return a config")


def test_shipped_configs_are_listed_and_read_outside_a_checkout(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "configs"]) == 0
    names = capsys.readouterr().out.split()
    assert "configs/quickstart.py" in names and "configs/vision/simclr.py" in names
    assert all(load(name)[0].steps for name in names if "/text/" in name)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.py").write_text("def get_config(arg=''):\n    return 3\n")
    with pytest.raises(UserError, match="returned 3"):  # a file that exists comes first
        load("configs/quickstart.py")


@pytest.mark.full  # builds a wheel
def test_a_wheel_has_the_configs(tmp_path):
    root = pathlib.Path(cli.__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(root),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    shipped = {f"ssljax/{path.relative_to(root).as_posix()}" for path in (root / "configs").rglob("*.py")}
    assert shipped <= names and "ssljax/report/page.html" in names


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"ssljax {ssljax.__version__}\n"


def test_a_missing_required_key(ssljax_train):
    refused(ssljax_train({k: v for k, v in BASE.items() if k != "batch_size"}), r"batch_size: missing")


def test_text_shorter_than_a_sequence(ssljax_train, tmp_path):
    (tmp_path / "a.txt").write_text("short")
    data = {"source": f"text:{tmp_path}/*.txt", "seq_len": 64}
    refused(ssljax_train({**LM, "data": data}), r"seq_len|64")


def test_vocabulary_larger_than_the_embedding(ssljax_train, tmp_path):
    (tmp_path / "a.txt").write_text("some words to read " * 200)
    data = {"source": f"text:{tmp_path}/*.txt", "seq_len": 16}
    config = {**LM, "model": {**LM["model"], "vocab_size": 100}, "data": data}
    refused(ssljax_train(config), r"model\.vocab_size.*100")


def png(shape):
    out = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_images_of_mixed_shapes(ssljax_train, tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for i, side in enumerate((8, 8, 12)):
        (folder / f"{i}.png").write_bytes(png((side, side, 3)))
    log = {**BASE["log"], "stall_seconds": None}  # stderr under pytest has no file descriptor for stacks
    config = {**BASE, "log": log, "data": {"source": f"images:{tmp_path}/images"}}
    attention._log_once.cache_clear()
    code, err = ssljax_train(config)
    refused((code, err), r"shape.*image_size|image_size.*shape")
    assert len(err.splitlines()) == 1, "one line per mistake"
    assert ssljax_train(config, "--config.data.image_size=8")[0] == 0, "the advice of the line must help"


def test_a_corrupt_image(ssljax_train, tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(png((8, 8, 3)))
    (folder / "torn.png").write_bytes(png((8, 8, 3))[:40])
    (folder / "text.png").write_text("no picture")
    config = {**BASE, "data": {"source": f"images:{tmp_path}/images"}}
    code, err = ssljax_train(config)
    refused((code, err), r"corrupt image .*text\.png \(cannot identify image file\)")
    (folder / "text.png").unlink()
    refused(ssljax_train(config), r"torn\.png")


def test_a_corrupt_npz(ssljax_train, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not an archive")
    refused(ssljax_train({**BASE, "data": {"source": f"npz:{tmp_path}/x.npz"}}), r"x\.npz")


def test_a_corrupt_line(ssljax_train, tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as f:
        f.write(json.dumps({"text": "words " * 100}) + "\n{'text': \n")
    data = {"source": f"jsonl:{tmp_path}/x.jsonl.gz", "seq_len": 16}
    refused(ssljax_train({**LM, "data": data}), r"x\.jsonl\.gz:2")


def test_a_label_out_of_range(ssljax_train, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((40, 8, 8, 1), np.uint8), label=np.array([0] * 39 + [-1]))
    refused(ssljax_train({**BASE, "data": {"source": f"npz:{tmp_path}/x.npz"}}), r"label.*-1")


def test_evaluating_a_missing_workdir(capsys, tmp_path):
    code = cli.main(["eval", "--workdir", str(tmp_path)])
    refused((code, capsys.readouterr().err), r"holds no config\.json")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match="no file"):
        cli.main(["train", "--debug", "--config", str(tmp_path / "none.py"), "--workdir", str(tmp_path)])


def test_a_replaced_group_names_the_dropped_keys(ssljax_train):
    code, err = ssljax_train(BASE, "--config.objective.name=mae", "--config.batch_size=7")
    assert "objective: 'simclr' replaced by 'mae'; these keys were dropped: projector" in err
    assert code == 2


@pytest.mark.parametrize("kind", ["objectives", "data", "evals", "optimizers", "schedules"])
def test_lists(capsys, kind):
    assert cli.main(["list", kind]) == 0
    assert capsys.readouterr().out.strip()


def test_the_keys_of_a_config_are_listed(capsys):
    assert cli.main(["list", "keys"]) == 0
    assert "batch_size (required)  [an integer, > 0]\n    examples per step" in capsys.readouterr().out
    assert cli.main(["list", "keys", "optimizer"]) == 0
    assert "adamw" in capsys.readouterr().out
    assert cli.main(["list", "keys", "objective.simclr.temperature"]) == 0
    assert capsys.readouterr().out.startswith("temperature = 0.1  [a number, > 0]\n    temperature of the softmax")
    refused((cli.main(["list", "keys", "optimiser"]), capsys.readouterr().err), r"optimiser: unknown key.*'optimizer'")
    refused((cli.main(["list", "models", "gpt"]), capsys.readouterr().err), r"gpt: `ssljax list models` takes no group")


def test_help_says_how_to_list_the_keys(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "`ssljax list keys`" in capsys.readouterr().out


def test_an_error_in_a_key_has_its_doc(ssljax_train):
    suffix = r" \[temperature: temperature of the softmax over similarities \(tau of eq\. 1\)\]$"
    refused(ssljax_train(BASE, "--config.objective.temperature=-1"), rf"temperature: got -1\.0, must be > 0{suffix}")
    refused(ssljax_train(BASE, "--config.objective.temperture=1"), rf"temperture: unknown key.*{suffix}")


def test_the_list_of_models_has_presets_and_parameters(capsys, monkeypatch):
    few = {name: models.REGISTRY.entries[name] for name in ("gpt", "clip")}
    monkeypatch.setattr(models.REGISTRY, "entries", few)
    assert cli.main(["list", "models"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0] for row in rows} == set(few)
    assert ["gpt", "gpt2", "124,439,808"] in rows
    assert ["gpt", "micro", "-", "vocab_size,", "max_len:", "of", "the", "data"] in rows


def test_a_closed_pipe_is_no_error():
    for kind in ("models", "objectives"):  # printed line by line; printed at the end
        command = f"{sys.executable} -m ssljax.cli list {kind} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (cli.CLOSED_PIPE, "")


def test_import_is_fast():
    """Heavy libraries are imported at first use."""
    code = "import sys, ssljax; print([m for m in ('jax', 'torch', 'tensorflow', 'matplotlib') if m in sys.modules])"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]" and time.perf_counter() - began < 5
    heavy = ("torch", "tensorflow", "matplotlib", "tokenizers", "transformers", "tensorflow_datasets", "sklearn")
    code = f"import sys, ssljax.run; print([m for m in sys.modules if m in {heavy}])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_terminal_is_not_controlled_by_generated_text(capsys):
    shown = cli.text._Shown()
    shown.so_far("a\x1b[2J", "b\x07")
    shown.finish("a\x1b[2J", "b\x07\n\x1b]0;c\x07 é\t")
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(out) and "b\\x07\n\\x1b]0;c\\x07 é\t" in out
