"""Evaluation of a finished run: it depends on its workdir and on the data of the evaluations alone."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import LM

from ssljax import cli, run, runs
from ssljax.base.errors import UserError

WORDS = ("one", "small", "step", "for", "a", "model", "and", "a", "giant", "leap", "for", "its", "loss")


def write_text(path, count, words=WORDS, seed=0):
    rng = np.random.default_rng(seed)
    path.write_text("".join(json.dumps({"text": " ".join(rng.choice(words, 12))}) + "\n" for _ in range(count)))


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for split, count in (("train", 200), ("test", 30)):
        write_text(folder / f"{split}.jsonl", count, seed=count)
    data = {"source": f"jsonl:{folder}/{{split}}.jsonl", "seq_len": 16, "overlap": 1}
    data |= {"tokenizer": {"name": "bpe", "vocab_size": 300}, "cache_dir": str(folder / "cache")}
    config = {**LM, "data": data, "evals": {"perplexity": {}, "loss": {"batch_size": 8}}}
    run.train(config, folder / "run")
    return folder, config


def of_trained(workdir):
    lines = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    return {line["eval"]: line["metrics"] for line in lines if line["of"] == "trained"}


def test_the_loss_of_a_language_model_is_the_logarithm_of_its_perplexity(text_run):
    folder, _ = text_run
    metrics = of_trained(folder / "run")
    assert metrics["loss"]["loss"] == pytest.approx(np.log(metrics["perplexity"]["perplexity"]), rel=1e-5)


def test_keys_of_evaluations_change_for_a_call(text_run, tmp_path, capsys):
    shutil.copytree(text_run[0] / "run", tmp_path / "run")
    command = ["eval", "--workdir", str(tmp_path / "run")]
    arguments = ["--evals", "loss,train_loss", "--evals.loss.max_examples=10", "--evals.train_loss.type", "loss"]
    assert cli.main([*command, *arguments, "--evals.train_loss.test_split=train[:20]"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/evals.jsonl").read_text().splitlines()]
    of = {(line["eval"], line["of"]): line for line in lines}
    assert (
        list(of["loss", "trained"]["sizes"].values()) == [10]
        and of["loss", "trained"]["settings"]["max_examples"] == 10
    )
    assert 0 < max(of["train_loss", "untrained"]["sizes"].values()) < 30
    assert "train_loss" not in json.loads((tmp_path / "run/config.json").read_text())["evals"], "for this call only"
    for word, message in [
        ("--evals.loss.max_exmples=1", "evals.loss.max_exmples: unknown key; did you mean 'max_examples'"),
        ("--evals.loss.batch_size=12", "evals.loss.batch_size: got 12, must be a multiple of"),
        ("--evals.new.k=5", "evals.new"),
        ("--config.steps=3", "--config.steps=3: unknown argument of `ssljax eval`"),
    ]:
        assert cli.main([*command, word]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("change", ["grown", "gone"])
def test_the_tokenizer_of_the_workdir_is_used_always(text_run, tmp_path, change):
    shutil.copytree(text_run[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    values = json.loads((folder / "run" / "config.json").read_text())
    values["data"] |= {"source": f"jsonl:{folder}/{{split}}.jsonl", "cache_dir": str(folder / "cache")}
    values["evals"]["perplexity"]["ngrams"] = False
    (folder / "run" / "config.json").write_text(json.dumps(values))
    before, tokenizer = of_trained(folder / "run"), (folder / "run" / "tokenizer.json").read_bytes()
    if change == "grown":
        write_text(folder / "train.jsonl", 400, [word[::-1] * 3 for word in WORDS])
    else:
        (folder / "train.jsonl").unlink()
    runs.evaluate(folder / "run")
    assert of_trained(folder / "run") == before
    assert (folder / "run" / "tokenizer.json").read_bytes() == tokenizer


def test_a_run_without_its_tokenizer_is_refused(text_run, tmp_path):
    """Before: the tokenizer was trained again, on files that may have changed."""
    shutil.copytree(text_run[0] / "run", tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: missing"):
        runs.evaluate(tmp_path / "run")


def test_a_run_that_continues_keeps_its_tokenizer(text_run, tmp_path):
    folder, config = text_run
    shutil.copytree(folder, tmp_path / "copy")
    folder = tmp_path / "copy"
    tokenizer = (folder / "run" / "tokenizer.json").read_bytes()
    write_text(folder / "train.jsonl", 400, [word[::-1] * 3 for word in WORDS])
    data = config["data"] | {"source": f"jsonl:{folder}/{{split}}.jsonl", "cache_dir": str(folder / "cache")}
    run.train({**config, "data": data, "steps": 3}, folder / "run", "force")
    assert (folder / "run" / "tokenizer.json").read_bytes() == tokenizer
    assert json.loads((folder / "run" / "config.json").read_text())["data"]["tokenizer"]["name"] == "bpe"


def test_classes_of_other_files_are_matched_by_name(tmp_path):
    """The other folder has two of the three classes, so its labels have other numbers."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, names in (("train", "abc"), ("test", "abc"), ("other", "bc"), ("unknown", "bz")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                shade = 80 * "abcz".index(name)
                image = np.clip(shade + rng.integers(0, 15, (8, 8)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / split / name / f"{i}.png")
    shutil.copytree(tmp_path / "other" / "b", tmp_path / "same" / "b")
    shutil.copytree(tmp_path / "other" / "c", tmp_path / "same" / "c")
    (tmp_path / "same" / "a").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "same" / "a" / "x.png")
    other = {"type": "loss", "batch_size": 8, "test_split": "train"}
    config = {
        **LM,
        "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "classification"},
        "data": {"source": f"images:{tmp_path}/train"},
        "evals": {
            "two": {**other, "source": f"images:{tmp_path}/other"},
            "three": {**other, "source": f"images:{tmp_path}/same", "where": {"label": [1, 2]}},
        },
    }
    run.train(config, tmp_path / "run")
    metrics = of_trained(tmp_path / "run")
    assert metrics["two"] == pytest.approx(metrics["three"], rel=1e-5)
    config["evals"] = {"two": {**other, "source": f"images:{tmp_path}/unknown"}}
    message = (
        r"evals\.two\.test_split: split 'train' has the class 'z', which the run does not have \(it has: a, b, c\)"
    )
    with pytest.raises(UserError, match=message):
        run.train(config, tmp_path / "run")
