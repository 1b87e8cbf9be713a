"""Values of config files as plain Python values."""

import datetime
import enum
import pathlib

import ml_collections
import numpy as np
import pytest
from ml_collections import config_dict

from ssljax.base.errors import UserError, one_line, shown
from ssljax.base.plain import plain


def test_values_of_config_files_become_plain():
    reference = ml_collections.FieldReference(3)
    config = ml_collections.ConfigDict({"a": reference, "b": reference * 2, "c": {"d": (1, 2)}})
    config.parts = [ml_collections.ConfigDict({"weight": reference}), ({"deep": ml_collections.ConfigDict({"x": 1})},)]
    assert plain(config) == {
        "a": 3,
        "b": 6,
        "c": {"d": (1, 2)},
        "parts": [{"weight": 3}, ({"deep": {"x": 1}},)],
    }
    values = [np.float32(0.5), np.int64(3), np.bool_(True), np.array([[1, 2]]), np.array(4), np.str_("x")]
    made = plain(values)
    assert made == [0.5, 3, True, [[1, 2]], 4, "x"]
    assert [type(value) for value in made] == [float, int, bool, list, int, str]
    assert plain({"where": {"label": {4, 3}}, "also": frozenset("ba"), "path": pathlib.Path("a/b")}) == {
        "where": {"label": [3, 4]},
        "also": ["a", "b"],
        "path": "a/b",
    }
    assert plain(config_dict.placeholder(int)) is None  # not required, so it stands for None
    assert plain(2**63 - 1) == 2**63 - 1 and plain(-(2**63)) == -(2**63)


def test_members_of_enumerations_are_their_values():
    """Before: a member of an enumeration of texts became its own name, "Name.SIMCLR"."""
    name = enum.Enum("Name", {"SIMCLR": "simclr"}, type=str)
    number = enum.IntEnum("Number", {"ONE": 1})
    made = plain({name.SIMCLR: [name.SIMCLR, number.ONE]})
    assert made == {"simclr": ["simclr", 1]}
    assert [type(value) for value in [*made, *made["simclr"]]] == [str, str, int]


def nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def circle():
    value = {}
    value["again"] = value
    return value


WRONG = {
    "integer": (10**400, r"^k\.x: got an integer of 1329 bits, must have at most 64"),
    "integer of text": (2**63, r"^k\.x: got an integer of 64 bits"),
    "nan": (float("nan"), r"^k\.x: got nan, must be a finite number"),
    "infinity in a list": ([1.0, float("-inf")], r"^k\.x\[1\]: got -inf"),
    "nan of numpy": (np.float32("nan"), r"^k\.x: got nan"),
    "bytes": (b"x", r"^k\.x: got b'x' \(bytes\), must be"),
    "function": (len, r"^k\.x: got <built-in function len>"),
    "class of a function": (type("f.<locals>.C", (), {}), r"^k\.x: got the class f\.<locals>\.C, must be"),
    "complex": (1j, r"^k\.x: got 1j \(complex\)"),
    "date": (datetime.date(2000, 1, 1), r"^k\.x: got datetime\.date\(2000, 1, 1\)"),
    "object of numpy": (np.array([object()]), r"^k\.x\[0\]: got <object"),
    "name that is no text": ({3: 1}, r"^k\.x: has the key 3 \(int\), must be a text"),
    "name that is None": ({None: 1}, r"^k\.x: has the key None"),
    "required placeholder": (config_dict.required_placeholder(int), r"^k\.x: missing; the config has a placeholder"),
    "placeholder in a list": ([{"y": config_dict.required_placeholder(int)}], r"^k\.x\[0\]\.y: missing"),
    "depth": (nested(5000), r"^k\.x\.a\.a.*nested more than 32 levels"),
    "circle": (circle(), r"^k\.x\.again.*nested more than 32 levels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_no_config_can_hold(case):
    value, message = WRONG[case]
    with pytest.raises(UserError, match=message) as caught:
        plain({"x": value}, "k")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_reference_that_cannot_be_computed():
    reference = ml_collections.FieldReference(1) / ml_collections.FieldReference(0)
    with pytest.raises(UserError, match=r"^x: cannot be computed: ZeroDivisionError"):
        plain({"x": reference})


def test_messages_are_one_printable_line():
    assert str(UserError("a\n  b\r\nc\u2028d")) == "a b c d"
    assert str(UserError("a\x00\udc80b\x1b[0m é")) == "a\\x00\\udc80b\\x1b[0m é"
    long = one_line("x" * 10**6)
    assert len(long) <= 2000 and long.startswith("xxx") and " ... " in long
    assert len(shown("x" * 10**6)) < 200 and len(shown(list(range(10**6)))) < 200
    assert shown(10**5000).startswith("a") and shown([1, "a"]) == "[1, 'a']"
