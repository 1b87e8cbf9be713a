"""Every key of the schema gets wrong kinds of values, through a config file and `--config` overrides.

The result is a config, which can be saved and read again, or one line that names the key; never another exception.
"""

import datetime
import inspect
import json
import pathlib
import re

import hypothesis
import ml_collections
import numpy as np
import pytest
import tiny_objectives
from hypothesis import strategies as st
from ml_collections import config_dict

from ssljax import cli, config, objectives
from ssljax.base import schema
from ssljax.base.errors import UserError

BASE = {
    "model": {"name": "vit"},
    "objective": {"name": "simclr"},
    "data": {"source": "builtin:digits"},
    "optimizer": {"name": "adamw"},
    "steps": 2,
    "batch_size": 8,
}
REQUIRED = {"rope_scaling": {"factor": 2.0, "original_len": 8}}  # keys without which a group cannot be built


def deep(kind, levels=3000):
    value = kind()
    for _ in range(levels):
        value = {"a": value} if kind is dict else [value]
    return value


def circle():
    value = []
    value.append(value)
    return value


CONSTANTS = [
    *(None, True, 0, 1, -1, 3, 7, 2.5, 2**40, 2**62, -(2**62), 10**30, 10**400, -(10**5000), 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf"), complex(1, 2), np.float32(3), np.float32("nan"), np.int64(3)),
    *(np.array([1, 2]), np.array(3), np.array([object()]), np.array(["x"])),
    *(
        "",
        " ",
        "x",
        "1",
        "none",
        "(",
        "é\udc80\x00\n",
        "a\nb",
        "os:path",
        "os:getcwd",
        "x" * 10**5,
        b"x",
        bytearray(b"x"),
    ),
    *([], {}, [[]], [{}], [None], [10**400], ["x"] * 3, (1, 2), [("x", 1)], [("x",)], {1, 2}, frozenset(), range(3)),
    *({"": 0}, {1: 2}, {None: {}}, {"name": []}, {"name": None}, {"name": "os:path"}, {"type": 3}, {"a.b": {"c": 1}}),
    *({"name": "x\ny"}, {"a\nb": 1}, {"a": 10**400}, {"a": float("nan")}, object(), int, len, lambda: 0),
    *(datetime.date(2000, 1, 1), pathlib.Path("x"), circle(), deep(dict), deep(list)),
    *(ml_collections.ConfigDict({"a": 1}), [ml_collections.ConfigDict({"a": 1})], ml_collections.FieldReference(3)),
    *(config_dict.placeholder(int), config_dict.required_placeholder(str), [config_dict.required_placeholder(int)]),
    *(ml_collections.FieldReference(1) / ml_collections.FieldReference(0), {"x": np.float64("inf")}),
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
VALUES = st.sampled_from(CONSTANTS) | NESTED


def keys(cls, groups=(), above=()):
    """Yields (groups, key) of every key below a class; `groups` are pairs (key, name of the entry)."""
    for key in schema.keys(cls):
        yield groups, key
        for name, group in schema.groups(cls, key).items():
            if group not in above:
                yield from keys(group, (*groups, (key, name)), (*above, group))


def places():
    """{"class.key": (groups, key)}: every key of every class once, at its first place in a config."""
    out = {}
    for groups, key in keys(config.RunConfig):
        cls = config.RunConfig
        for group, name in groups:
            cls = schema.groups(cls, group)[name]
        owner = next(c for c in cls.__mro__ if key in inspect.get_annotations(c))
        out.setdefault(f"{owner.__module__.removeprefix('ssljax.')}.{owner.__name__}.{key}", (groups, key))
    return out


PLACES = places()


def with_value(groups, key, value):
    """The smallest config in which a key has a value."""
    out = json.loads(json.dumps(BASE))
    inner = out
    for group, name in groups:
        own = {"name": name} if name else {}
        if group == "evals":
            inner[group] = {"e": {"type": name}}
            inner = inner[group]["e"]
        elif group == "mixture":
            inner.pop("source", None)
            inner[group] = [{"source": "builtin:digits"}]
            inner = inner[group][0]
        elif group == "streams":
            inner[group] = {"s": {"source": "builtin:digits"}}
            inner = inner[group]["s"]
        else:
            if inner.get(group, {}).get("name") != name:
                inner[group] = own | REQUIRED.get(group, {})
            inner = inner[group]
    inner[key] = value
    return out


def check(values, groups, key):
    """Builds a config; returns its error or None.

    The error is one short line that names the key, or another key of its group if the two exclude each other.
    """
    try:
        built = config.build(values)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and text.isprintable() and len(text) <= 2000, text
        together = bool(groups) and text.startswith(f"{groups[0][0]}.")
        assert key in text or together, f"{key!r} is not named: {text}"
        return error
    saved = json.loads(json.dumps(built.to_dict(), allow_nan=False))
    again = config.build(saved)
    assert again.to_dict() == saved and again.hash() == built.hash()
    return None


def test_every_key_with_constants():
    """An eighth of the values at each key, other ones at the next key."""
    for number, (groups, key) in enumerate(PLACES.values()):
        for value in CONSTANTS[number % 8 :: 8]:
            check(with_value(groups, key, value), groups, key)


@pytest.mark.parametrize("key", list(schema.keys(config.RunConfig)))
def test_every_constant_at_the_keys_of_a_run(key):
    refused = [check(with_value((), key, value), (), key) for value in CONSTANTS]
    assert any(refused), "no value is refused"


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.sampled_from(sorted(PLACES)), VALUES)
def test_any_key_with_any_value(place, value):
    groups, key = PLACES[place]
    check(with_value(groups, key, value), groups, key)


def text_of(value):
    """A value as a user may write it; Python writes no very long integers and no very deep lists."""
    try:
        return repr(value)
    except ValueError:
        return "9" * 5_000
    except RecursionError:
        return "[" * 5_000 + "]" * 5_000


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.sampled_from(sorted(PLACES)), st.text(max_size=12) | VALUES.map(text_of))
def test_any_key_with_any_text_on_the_command_line(place, text):
    groups, key = PLACES[place]
    dotted = ".".join([*(group for group, _ in groups), key])
    values = with_value(groups, key, None)
    if "mixture" in dotted:
        return  # a list has no dotted keys
    dotted = dotted.replace("evals.", "evals.e.").replace("streams.", "streams.s.")
    try:
        changed, _ = config.override(values, dotted, config.parse_value(text))
    except UserError as error:
        assert "\n" not in str(error)
        return
    check(changed, groups, "")


FILES = {
    "syntax error": ("def get_config(arg=''):\n    return {\n", r"c\.py: SyntaxError: .*line 2"),
    "error at import": ("import no_such_module_xyz\n", r"c\.py: ModuleNotFoundError: .*c\.py:1"),
    "error inside": ("def get_config(arg=''):\n    x = {}\n    return x['y']\n", r"c\.py: KeyError: 'y' \(.*c\.py:3\)"),
    "attribute error": ("def get_config(arg=''):\n    return (3).get_config\n", r"c\.py: AttributeError: .*c\.py:2"),
    "no function": ("x = 1\n", r"c\.py: has no get_config"),
    "no callable": ("get_config = 3\n", r"c\.py: has no get_config"),
    "exit": ("import sys\nsys.exit(0)\n", r"c\.py: SystemExit: 0 \(.*c\.py:2\)"),
    # Python 3.13.0 does not count calls that leave a default out.
    "recursion": ("def get_config(arg=''):\n    return get_config(arg)\n", r"c\.py: RecursionError"),
    "assertion": ("def get_config(arg=''):\n    assert arg, 'two\\nlines'\n", r"c\.py: AssertionError: two lines"),
    "two arguments": ("def get_config(a, b):\n    return {}\n", r"c\.py: TypeError: .*'b'"),
    "nothing": ("def get_config(arg=''):\n    pass\n", r"c\.py: get_config returned None, must return a config"),
    "generator": ("def get_config(arg=''):\n    yield {}\n", r"got <generator object"),
    "path is changed": (
        "import sys\nsys.path.clear()\ndef get_config(arg=''):\n    return 3\n",
        r"get_config returned 3",
    ),
    "null byte": ("\0", r"c\.py: (SyntaxError|ValueError): source code"),
    "not text": (b"\xff\xfe", r"c\.py: SyntaxError"),
    "dots in names": (
        "import ml_collections\ndef get_config(arg=''):\n    return ml_collections.ConfigDict({'a.b': 1})\n",
        r"c\.py: ValueError: .*dot",
    ),
    "empty": ("def get_config(arg=''):\n    return {}\n", r"model: missing"),
    "placeholder": (
        "from ml_collections import config_dict as c\n"
        "def get_config(arg=''):\n    return c.ConfigDict({'model': {'name': c.required_placeholder(str)}})\n",
        r"model\.name: missing; the config has a placeholder here that must be given",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_config_files_that_fail(case, tmp_path, capsys):
    content, message = FILES[case]
    file = tmp_path / "c.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code = cli.main(["train", "--config", str(file), "--workdir", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    with pytest.raises(UserError, match=message):
        config.load(str(file))
    assert not (tmp_path / "run").exists()


def test_config_files_that_are_read(tmp_path):
    folder = tmp_path / "a:b"  # a colon separates the argument of the config from the name of the file
    folder.mkdir()
    (folder / "shared.py").write_text(f"BASE = {BASE!r}\n")
    (folder / "plain.py").write_text("import shared\nprint('hello')\ndef get_config():\n    return shared.BASE\n")
    (folder / "arg.py").write_text(
        "import shared\ndef get_config(arg):\n    return {**shared.BASE, 'steps': int(arg)}\n"
    )
    assert config.load(str(folder / "plain.py"))[0] == config.build(BASE)
    assert config.load(f"{folder / 'arg.py'}:7")[0].steps == 7


@pytest.mark.parametrize(
    "path, message",
    [
        ("missing.py", r"no file 'missing\.py'"),
        ("", r"got '', must be a Python file"),
        (".", r"got '\.', must be a Python file"),
        ("config.json", r"must be a Python file"),
        ("folder.py", r"no file 'folder\.py'"),
        ("x" * 300 + ".py", r"no file|File name too long"),
    ],
)
def test_paths_that_are_no_config(path, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "config.json").write_text("{}")
    code = cli.main(["train", "--config", path, "--workdir", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert re.search(message, err), err


OVERRIDES = {
    "--config.=3": r"--config\.: has an empty name",
    "--config..steps=3": r"--config\.\.steps: has an empty name",
    "--config.model..width=3": r"empty name between its dots",
    "--config.model.width.": r"has no value",
    "--config.steps.x=3": r"steps: is not a group of keys",
    "--config.data.source.x=3": r"data\.source: is not a group of keys",
    "--config.model=vit": r"model: got 'vit', must be a group of keys with a name",
    "--config.model=none": r"model: got None, must be a group of keys with a name",
    "--config.batch_size=1e400": r"batch_size: got inf, must be a finite number",
    "--config.batch_size=" + "9" * 400: r"batch_size: got an integer of 1329 bits",
    "--config.batch_size=" + "9" * 9000: r"batch_size: got '9999.*must be an integer",
    "--config.batch_size=" + "[" * 9000: r"batch_size: got '\[\[\[.*must be an integer",
    "--config.batch_size=b'8'": r"batch_size: got b'8' \(bytes\)",
    "--config.steps=1e99999999 steps": r"steps: got '1e99999999 steps'",
    "--config.steps=" + "9" * 5000 + " epochs": r"steps: got '999",
    "--config.microbatches=7": r"microbatches: got 7, must divide batch_size 8 \(nearest that do: 4, 8\)",
    "--config.optimizer.lr_multipliers={'a':1,'b':2}": r"lr_multipliers: got a group.*list of pairs.*\('a', 1\)",
    "--config.optimizer.lr_multipliers=[('a.*',)]": r"lr_multipliers\[0\]: got .* must be a list of 2",
    "--config.optimizer.lr_multipliers=a.*": r"lr_multipliers: got 'a\.\*'.* must be a list of pairs",
    "--config.optimizer.freeze=[('(',1)]": r"optimizer\.freeze: '\(' is not a regular expression",
}


@pytest.mark.parametrize("argument", OVERRIDES, ids=lambda text: text[:50])
def test_overrides_with_odd_syntax(argument, tmp_path, capsys):
    (tmp_path / "c.py").write_text(f"def get_config(arg=''):\n    return {BASE!r}\n")
    code = cli.main(["train", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "run"), argument])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ")
    assert re.search(OVERRIDES[argument], err), err


def test_patterns_with_dots_can_be_written_everywhere():
    pairs = [("stack.*/bias$", 0.5), ("head", 0)]
    group = ml_collections.ConfigDict(BASE)
    group.optimizer.lr_multipliers = pairs
    expected = (("stack.*/bias$", 0.5), ("head", 0.0))
    assert config.build(group).optimizer.lr_multipliers == expected
    values, _ = config.override(BASE, "optimizer.lr_multipliers", config.parse_value(repr(pairs)))
    assert config.build(values).optimizer.lr_multipliers == expected
    saved = json.loads(json.dumps(config.build(values).to_dict()))
    assert config.build(saved).optimizer.lr_multipliers == expected
    swapped, _ = config.override(BASE, "optimizer.lr_multipliers", pairs[::-1])
    assert config.build(swapped).hash() != config.build(values).hash(), "the first pattern that matches counts"
    single, _ = config.override(BASE, "optimizer.freeze.head", "1 epoch")
    assert config.build(single).optimizer.freeze == (("head", "1 epoch"),)


def test_lists_of_config_dicts_and_references():
    group = ml_collections.ConfigDict(BASE)
    group.data = ml_collections.ConfigDict()
    share = ml_collections.FieldReference(2.0)
    group.data.mixture = [ml_collections.ConfigDict({"source": "builtin:digits", "weight": share}) for _ in range(2)]
    group.data.where = {"label": {4, 3}}
    built = config.build(group)
    spec = tiny_objectives.SPEC
    direct = objectives.create({"objective": group.objective, "model": {**group.model, "patch_size": 4}}, spec)
    assert direct == objectives.create(
        {"objective": {"name": "simclr"}, "model": {"name": "vit", "patch_size": 4}}, spec
    )
    assert [part.weight for part in built.data.mixture] == [2.0, 2.0] and built.data.where == {"label": [3, 4]}
