"""Every configuration key has a meaning, and `ssljax list keys` finds and prints it."""

import dataclasses
import inspect
import re

import pytest

from ssljax import cli, evals, models, objectives, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import RunConfig, build, load, override
from ssljax.layers.positions import SCALINGS
from ssljax.reference import describe_keys
from ssljax.train import optimizers, schedules

REGISTRIES = [models.REGISTRY, objectives.REGISTRY, optimizers.REGISTRY, schedules.REGISTRY, evals.REGISTRY]
REGISTRIES += [views.REGISTRY, views.MASKINGS, SCALINGS]


def groups():
    """All configuration classes: of the run, of the registries, and nested ones."""
    found = [RunConfig, *(registry.get(name) for registry in REGISTRIES for name in registry)]
    for cls in found:
        assert dataclasses.is_dataclass(cls), cls
        inner = [group for key in schema.keys(cls) for group in schema.groups(cls, key).values()]
        found += [group for group in dict.fromkeys(inner) if group not in found]
    return found


def declaring_module(cls, key):
    """The module of the class that introduces a key."""
    return next(c.__module__ for c in reversed(cls.__mro__) if key in inspect.get_annotations(c))


def undocumented(classes):
    return {
        f"{declaring_module(cls, key)}: {cls.__name__}.{key}"
        for cls in classes
        for key in schema.keys(cls)
        if not schema.key_doc(cls, key).strip()
    }


def test_every_key_has_a_meaning():
    assert undocumented(groups()) == set()


def test_nested_and_registered_groups_are_found():
    names = {cls.__name__ for cls in groups()}
    assert {"RunConfig", "MeshConfig", "Best", "Projector", "MAEDecoder", "MixturePart", "TextConfig", "Knn"} <= names
    assert {"ExpertsConfig", "Llama3", "InitFrom", "ContrastiveAugment", "AdamW"} <= names


def test_a_key_without_meaning_is_noticed():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        size: int = 3
        width: int = schema.setting(3, doc=" ")

    @dataclasses.dataclass(frozen=True)
    class Documented(Plain):
        size: int = schema.setting(4, doc="size of it")

    assert undocumented([Plain]) == {f"{__name__}: Plain.size", f"{__name__}: Plain.width"}
    assert undocumented([Documented]) == {f"{__name__}: Documented.width"}


def test_meanings_are_phrases_whose_gist_fits_in_an_error():
    for cls in groups():
        for key in schema.keys(cls):
            doc = schema.key_doc(cls, key)
            assert doc == " ".join(doc.split()) and not doc.endswith("."), (cls, key, doc)
            assert len(doc.partition("; ")[0]) <= 130, (cls, key, doc)


def lines(path):
    return "\n".join(describe_keys(path))


def test_a_group_with_types_defaults_and_meanings():
    text = lines("objective.simclr")
    assert text.startswith("objective.simclr: NT-Xent (eq. 1) on projections")
    assert (
        "\ntemperature = 0.1  [a number, > 0]\n    temperature of the softmax over similarities (tau of eq. 1)\n"
        in f"{text}\n"
    )
    assert "\nform = 'auto'  [one of 'auto', 'dense', 'chunked', 'ring', may change at a restart]\n" in text
    assert "\naugment = two_views  [a group chosen by name]\n" in text and "\nprojector = its defaults  [" in text
    assert "batch_size (required)  [an integer, > 0]\n" in lines("")


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("", "a run: "),
        ("seed", "seed = 0  [an integer, >= 0, < 2147483648]\n    random seed"),
        ("objective.simclr.temperature", "temperature = 0.1  [a number, > 0]"),
        ("objective.simclr.projector", "objective.simclr.projector: "),
        ("objective.simclr.projector.hidden", "hidden = 2048  ["),
        ("objective.simclr.augment", "augment = two_views  [a group chosen by name]"),
        ("objective.simclr.augment.two_views.size", "size = None  ["),
        ("model.clip.text.depth", "depth = None  [an integer or None, >= 1]\n    number of blocks"),
        ("data.mixture.weight", "weight = 1.0  ["),
        ("evals.knn.k", "k = 20  ["),
        ("init_from.path", "path (required)  [a text]"),
    ],
)
def test_paths(path, start):
    assert lines(path).startswith(start)


def test_the_names_of_a_group_are_listed():
    text = lines("objective")
    assert text.startswith("objective (required)  [a group chosen by name]\n    the training objective\n\n")
    assert all(f"\n{name:18} " in text for name in objectives.REGISTRY)
    assert text.endswith("`ssljax list keys objective.NAME` lists the keys of one of them.")
    assert "\nknn  " in lines("evals")


@pytest.mark.parametrize(
    ("overrides", "listed"),
    [
        ({"model.name": "gpt", "model.widht": 3}, "model.gpt"),
        ({"model.name": "clip", "model.text": {"widht": 3}}, "model.clip.text"),
        ({"objective.name": "mae", "objective.decoder": {"widht": 3}}, "objective.mae.decoder"),
    ],
)
def test_an_unknown_key_of_a_large_group_names_the_command_that_lists_it(overrides, listed):
    values = {
        "data": {"source": "builtin:digits"},
        "model": {"name": "vit"},
        "objective": {"name": "simclr"},
        "optimizer": {"name": "adamw"},
    }
    for key, value in overrides.items():
        values, _ = override(values, key, value)
    with pytest.raises(UserError) as caught:
        build({"steps": 1, "batch_size": 1, **values})
    keys = [line for line in lines(listed).splitlines() if re.match(r"\w+ (=|\(required\))", line)]
    hint = f"unknown key; did you mean 'width'? (`ssljax list keys {listed}` lists all {len(keys)})"
    assert hint in str(caught.value) and len(keys) > 20
    with pytest.raises(UserError, match=r"^optimizer\.rate: unknown key.* \(allowed: learning_rate, "):  # a small group
        schema.build_named(optimizers.REGISTRY, {"name": "adamw", "rate": 1}, "optimizer")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("objektive", "objektive: unknown key; did you mean 'objective'? (allowed: model, objective, data,"),
        ("objective.simclrr", "objective.simclrr: unknown name; did you mean 'simclr'? (allowed: align_uniform,"),
        ("objective.simclr.temp", "objective.simclr.temp: unknown key"),
        ("seed.more", "seed: is not a group, so it has no key 'more'"),
        ("objective.simclr.augment.two_views.size.more", "objective.simclr.augment.two_views.size: is not a group"),
    ],
)
def test_mistakes(path, message):
    with pytest.raises(UserError) as caught:
        lines(path)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_group_of_a_run_can_be_listed():
    paths: dict[type, str] = {RunConfig: ""}  # one path of each class
    found = [RunConfig]
    for cls in found:
        for key in schema.keys(cls):
            for name, group in schema.groups(cls, key).items():
                if group not in paths:
                    paths[group] = ".".join(filter(None, [paths[cls], key, name]))
                    found.append(group)
    assert len(paths) > 80
    for cls, path in paths.items():
        text = lines(path)
        assert all(f"\n{key} " in text for key in schema.keys(cls)), path


def test_the_help_of_a_config_lists_its_keys_with_its_values(capsys):
    words = ["train", "--config", "configs/quickstart.py", "--config.steps=7", "--config.model.bias", "false"]
    assert cli.main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    config, _ = load("configs/quickstart.py", [("steps", "7"), ("model.bias", "false")])
    shown = {line.partition(" = ")[0] for line in lines if line[:1] not in (" ", "") and "  [" in line}
    groups = {
        line.split(":")[0].partition(" = ")[0] for line in lines if line[:1] not in (" ", "") and "  [" not in line
    }

    def paths(values, path=""):
        for key, value in values.items():
            here = f"{path}{key}"
            yield from paths(value, f"{here}.") if here in groups or here == "evals" else [here]

    # Evaluations are given without their defaults; the name of a group stands in its title.
    wanted = {path for path in paths(config.to_dict()) if not path.endswith((".name", ".type")) or path in shown}
    assert wanted <= shown and {path for path in shown - wanted if not path.startswith("evals.")} == set()
    assert "steps = 7  [an integer or a text]" in lines
    assert "model.bias = False (default True)  [true or false]" in lines
    assert "objective.temperature = 0.2 (default 0.1)  [a number, > 0]" in lines
    assert "    temperature of the softmax over similarities (tau of eq. 1)" in lines
    assert any(line.startswith("evals.knn = 'knn': ") for line in lines)
    assert "evals.knn.draws = 20 (default 1)  [an integer, >= 1]" in lines
    assert not any(line.startswith("objective.momentum") for line in lines)  # a key of another objective


def test_help_of_a_config_that_is_wrong_is_one_line(capsys):
    for words, message in (
        (["--config", "none.py"], "--config: no file 'none.py'"),
        (["--config", "configs/quickstart.py", "--config.stepz=1"], "stepz: unknown key"),
        (["--config", "configs/quickstart.py", "--steps"], "--steps: unknown argument"),
    ):
        assert cli.main(["train", *words, "-h"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "--workdir" in capsys.readouterr().out
