"""`ssljax init`: the file that it writes is the shipped config, with comments, and trains."""

import json

import numpy as np
import pytest
from daily import at_most
from tiny_objectives import SEQUENCES

from ssljax import cli, run
from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.starter import OWN_DATA, starters, write_starter

OBJECTIVES = starters()
TEXT = (
    "causal_lm",
    "electra",
    "masked_diffusion",
    "mlm",
    "multi_label",
    "prefix_lm",
    "simcse",
    "word2vec",
    "xlnet",
    *SEQUENCES,
)


def source(objective, folder):
    """URI of a little data for an objective."""
    rng = np.random.default_rng(0)
    captions = "".join(json.dumps({"text": f"{i} " * 8}) + "\n" for i in range(40))
    (folder / "x.jsonl").write_text(captions)
    if objective == "multi_label":
        lines = (json.dumps({"text": f"{i} " * 8, "labels": [i % 2, i % 3 == 0]}) + "\n" for i in range(40))
        (folder / "labels.jsonl").write_text("".join(lines))
        return f"jsonl:{folder}/labels.jsonl"
    if objective == "graph_cl":
        (folder / "x.txt").write_text("40\n" + "".join(f"3 {i % 2}\n0 1 1\n1 2 0 2\n0 1 1\n" for i in range(40)))
        return f"graphs:{folder}/x.txt"
    if objective in TEXT:
        (folder / "x.txt").write_text("one small step for a model\n" * 400)
        return f"text:{folder}/x.txt"
    np.savez(
        folder / "x.npz",
        image=rng.integers(0, 256, (40, 64, 64, 3), np.uint8),
        label=np.arange(40) % 4,
        target=np.arange(40.0),
    )
    both = objective in ("clip", "siglip", "captioning")
    return f"npz:{folder}/x.npz" + (f"+jsonl:{folder}/x.jsonl" if both else "")


def test_every_objective_has_a_starter():
    from ssljax.objectives import REGISTRY

    assert set(OBJECTIVES) | {"captioning"} == set(REGISTRY)
    assert "finetune" not in "".join(OBJECTIVES.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("own", [False, True])
def test_the_file_is_the_shipped_config(objective, own, tmp_path):
    kind = "graphs" if objective == "graph_cl" else "text" if objective in TEXT else "images"
    uri = f"{kind}:own" if own else None
    path = write_starter(str(tmp_path / "mine"), objective, uri)
    text = path.read_text()
    compile(text, path, "exec")
    name = OBJECTIVES[objective]
    shipped = [f"{name}:{argument}" for argument in OWN_DATA if f"{name}:{argument}" in text] if own else [name]
    config = load((shipped or [name])[0], [("data.source", uri)] if own else [])[0]
    assert load(str(path))[0].to_dict() == config.to_dict()
    assert "        # the encoder\n        model=dict(\n" in text
    assert (
        "            # side of a patch in pixels\n" in text
        or objective in (*TEXT, "graph_cl", "image_gpt")
        or "resnet" in text
    )
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize(
    ("own", "objective"), at_most([(own, name) for name in OBJECTIVES for own in (False, True)], 2)
)
def test_every_variant_trains_two_steps(own, objective, request, tmp_path):
    if not own and "SSLJAX_DATA" in str(load(OBJECTIVES[objective])[0].to_dict()):
        request.getfixturevalue("shared_data")
    path = write_starter(str(tmp_path / "mine"), objective, source(objective, tmp_path) if own else None)
    two = {"steps": "2", "batch_size": "16", "log.progress": "false", "evals": "{}"}
    run.train(load(str(path), list(two.items()))[0], tmp_path / "run")
    assert (tmp_path / "run/report.html").exists()


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "mine"]) == 0
    assert capsys.readouterr().out == "mine.py: edit it, then `ssljax train --config mine.py --workdir runs/mine`\n"
    assert load("mine.py")[0].to_dict() == load("configs/quickstart.py")[0].to_dict()
    assert cli.main(["init", "text.py", "--data", "text:*.txt"]) == 0
    assert '"""causal_lm, made from configs/text/causal_lm.py:data=files' in (tmp_path / "text.py").read_text()
    before = (tmp_path / "mine.py").read_bytes()
    for words, message in (
        (["mine.py"], "mine.py: exists; give another name"),
        (["new", "--objective", "simclrr"], "--objective: got 'simclrr'; did you mean 'simclr'"),
        (["none/new"], "none/new.py: the folder 'none' does not exist"),
    ):
        assert cli.main(["init", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "mine.py").read_bytes() == before and not (tmp_path / "new.py").exists()


def test_the_config_fits_the_data(tmp_path):
    """The shipped config of an objective is the one that reads this kind of data."""
    for objective in (None, "mae", "classification"):
        path = write_starter(str(tmp_path / f"{objective}"), objective, "audio:own sounds/ü")
        config = load(str(path))[0].to_dict()
        assert config["model"]["name"] == "ast" and config["data"]["source"] == "audio:own sounds/ü"
        assert config["objective"]["name"] == (objective or "simclr")
    with pytest.raises(UserError, match=r"'byol' reads images; start from 'simclr', or from another .* spectrograms"):
        write_starter(str(tmp_path / "x"), "byol", "audio:DIR")


@pytest.mark.parametrize(
    ("objective", "uri", "message"),
    [
        ("barlow_twins", "graphs:DIR", "'barlow_twins' reads images; start from 'graph_cl', or from another .* graphs"),
        ("simclr", "text:DIR/*", "'simclr' reads images; start from 'causal_lm', or from another objective for tokens"),
        ("mlm", "images:DIR", "'mlm' reads tokens; start from 'simclr', or from another objective for images"),
    ],
)
def test_data_of_another_kind_are_refused(objective, uri, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_starter(str(tmp_path / "mine"), objective, uri)
    assert list(tmp_path.iterdir()) == []


def test_studies_are_no_starters():
    assert not any(path.startswith(("configs/ablations/", "configs/scaling/")) for path in starters().values())
