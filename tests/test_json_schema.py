"""The JSON schema accepts every shipped config, and refuses what the program refuses."""

import copy
import json

import jsonschema
import pytest
from test_configs import PATHS, ROOT

from ssljax import cli
from ssljax.config import load
from ssljax.json_schema import json_schema

SCHEMA = json_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", PATHS)
def test_every_config_is_accepted(path):
    config, _ = load(str(ROOT / path))
    CHECK.validate(config.to_dict())


def group_at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("optimizer", "learning_rat", 1e-3),
        ("optimizer", "learning_rate", "fast"),
        ("objective", "temperature", -1.0),
        ("model", "name", "vat"),
        ("data", "mode", "windoes"),
        ("log", "every_steps", 0),
    ],
)
def test_mistakes_are_refused(group, key, value):
    config = load(str(ROOT / "configs/vision/simclr.py"))[0].to_dict()
    changed = copy.deepcopy(config)
    group_at(changed, group)[key] = value
    CHECK.validate(config)
    assert not CHECK.is_valid(changed)


def test_classes_of_other_packages_and_keys_have_descriptions():
    config = load(str(ROOT / "configs/vision/simclr.py"))[0].to_dict()
    config["objective"] = {"name": "my_package:Mine", "rate": 3}
    CHECK.validate(config)
    groups = [SCHEMA, *SCHEMA["$defs"].values()]
    assert all(p.get("description") for g in groups for k, p in g["properties"].items() if k != "name")


def test_the_command_prints_it(capsys):
    assert cli.main(["list", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))
