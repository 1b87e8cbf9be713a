"""Configurations: accepted and refused values, error messages, and conversion to JSON and back."""

import dataclasses
import json
from typing import Any, Literal

import pytest

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.registry import Registry
from ssljax.base.schema import fixed, injected, setting

SHAPES = Registry("shape", {"disc": f"{__name__}:Disc", "box": f"{__name__}:Box"})


@dataclasses.dataclass(frozen=True)
class Disc:
    radius: float = setting(1.0, gt=0)
    segments: int = setting(32, ge=3, free=True)


@dataclasses.dataclass(frozen=True)
class Ring:
    radius: float = setting(1.0, gt=0)
    width: float = setting(0.1, gt=0)
    edge: Any = setting(None, registry=SHAPES)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A class whose default for a group differs from the defaults of `Ring`."""

    shape: Any = setting(
        {"name": "ring", "radius": 3.0, "edge": {"name": "disc", "segments": 9}},
        registry=Registry("frame", {"ring": f"{__name__}:Ring", "disc": f"{__name__}:Disc"}),
    )


@dataclasses.dataclass(frozen=True)
class Box:
    sides: tuple[int, int] = (1, 2)

    def validate(self) -> None:
        if self.sides[0] > self.sides[1]:
            raise ValueError(f"sides: got {list(self.sides)}, must be in order")


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.1, ge=0, lt=1)
    kernel: str = setting("auto", free=True)
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    depth: int = setting(gt=0)
    width: int | None = None
    kind: Literal["pre", "post"] = "pre"
    on: bool = False
    label: str = "x"
    length: int | str = 5
    scale: float | None = None
    ratio: float | int = 1
    inner: Inner = setting(Inner())
    extra: Inner | None = None
    tuples: tuple[float, ...] = setting((0.5, 1.0), ge=0)
    table: dict[str, float] = setting({"a": 1.0})
    shape: Any = setting({"name": "disc"}, registry=SHAPES)
    maybe: Any = setting(None, registry=SHAPES)
    threads: int = setting(1, ge=1, free=True)
    module: Any = injected()


def build(path="model", **values):
    return schema.build(Outer, {"depth": 2, **values}, path)


def test_defaults_and_conversions():
    built = build(
        scale=1, tuples=[1, 2], inner={"rate": 0, "names": ["a", "b"]}, extra={"rate": 0.5}, shape={"name": "box"}
    )
    assert built.depth == 2 and built.width is None and built.label == "x"
    count = build(depth=1e3).depth
    assert count == 1000 and isinstance(count, int)
    assert built.scale == 1.0 and isinstance(built.scale, float)
    assert built.tuples == (1.0, 2.0) and all(isinstance(x, float) for x in built.tuples)
    assert built.inner == Inner(rate=0.0, names=("a", "b")) and built.extra == Inner(rate=0.5)
    assert built.shape == Box() and built.maybe is None
    assert build(shape={"name": "box", "sides": [3, 4]}).shape == Box(sides=(3, 4))
    assert build().shape == Disc()  # a default that is a group is built too
    assert build(length="5 epochs").length == "5 epochs" and build(length=7).length == 7
    assert isinstance(build(ratio=2).ratio, int) and isinstance(build(ratio=2.0).ratio, float)
    assert build(inner=Inner(0.3)).inner == Inner(0.3) and build(shape=Box()).shape == Box()


def test_injected_fields_are_no_keys():
    assert schema.build(Outer, {"depth": 1}, "model", module="m", unknown=3).module == "m"
    with pytest.raises(UserError, match=r"^model\.module: unknown key"):
        build(module="m")
    assert "module" not in schema.to_dict(schema.build(Outer, {"depth": 1}, "model", module=object()))


def test_mutable_defaults_are_not_shared():
    first, second = build(), build()
    first.table["b"] = 2.0
    assert second.table == build().table == {"a": 1.0}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dept": 3}, "model.dept: unknown key; did you mean 'depth'? (allowed: depth, width, kind,"),
        ({"zzz": 3}, "model.zzz: unknown key (allowed: depth, width,"),
        ({"name": "x"}, "model.name: unknown key"),
        ({"depth": 2.5}, "model.depth: got 2.5 (float), must be an integer"),
        ({"depth": "2"}, "model.depth: got '2' (str), must be an integer"),
        ({"depth": True}, "model.depth: got True (bool), must be an integer"),
        ({"depth": 0}, "model.depth: got 0, must be > 0"),
        ({"threads": 0}, "model.threads: got 0, must be >= 1"),
        ({"width": "wide"}, "model.width: got 'wide' (str), must be an integer or None"),
        ({"on": 1}, "model.on: got 1 (int), must be true or false"),
        ({"label": 1}, "model.label: got 1 (int), must be a text"),
        ({"length": 1.5}, "model.length: got 1.5 (float), must be an integer or a text"),
        ({"kind": "pots"}, "model.kind: got 'pots'; did you mean 'post'? (allowed: 'pre', 'post')"),
        ({"kind": 3}, "model.kind: got 3 (allowed: 'pre', 'post')"),
        ({"scale": float("nan")}, "model.scale: got nan, must be a finite number"),
        ({"scale": float("inf")}, "model.scale: got inf, must be a finite number"),
        ({"inner": {"rat": 0.2}}, "model.inner.rat: unknown key; did you mean 'rate'? (allowed: rate, kernel, names)"),
        ({"inner": {"rate": 1.0}}, "model.inner.rate: got 1.0, must be < 1"),
        ({"inner": 3}, "model.inner: got 3 (int), must be a group of keys"),
        ({"inner": {"names": "ab"}}, "model.inner.names: got 'ab' (str), must be a list of a text"),
        ({"inner": {"names": ["a", 3]}}, "model.inner.names[1]: got 3 (int), must be a text"),
        ({"extra": {"rat": 0.2}}, "model.extra.rat: unknown key; did you mean 'rate'?"),
        ({"extra": 3}, "model.extra: got 3 (int), must be a group of keys or None"),
        ({"tuples": [0.1, -1]}, "model.tuples: got -1.0, must be >= 0"),
        ({"table": {"a": "x"}}, "model.table.a: got 'x' (str), must be a number"),
        ({"table": 3}, "model.table: got 3 (int), must be a group of keys"),
        (
            {"shape": {"name": "disk"}},
            "model.shape.name: unknown shape 'disk'; did you mean 'disc'? (known: box, disc;",
        ),
        ({"shape": {"sides": [1, 2]}}, "model.shape.sides: unknown key (allowed: radius, segments)"),
        ({"maybe": {"radius": 2}}, "model.maybe.name: missing; one of box, disc is required"),
        ({"shape": {"name": "disc", "sides": 2}}, "model.shape.sides: unknown key (allowed: radius, segments)"),
        ({"shape": {"name": "disc", "radius": 0}}, "model.shape.radius: got 0.0, must be > 0"),
        ({"shape": "disc"}, "model.shape: got 'disc', must be a group of keys with a name (box, disc)"),
        ({"shape": None}, "model.shape: got None, must be a group of keys with a name (box, disc)"),
        ({"shape": {"name": "box", "sides": [2, 1]}}, "model.shape.sides: got [2, 1], must be in order"),
        (
            {"shape": {"name": "box", "sides": [1, 2, 3]}},
            "model.shape.sides: got [1, 2, 3] (list), must be a list of 2 (an integer, an integer)",
        ),
    ],
)
def test_mistakes_name_key_value_and_remedy(values, message):
    with pytest.raises(UserError) as caught:
        build(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_the_root_group():
    with pytest.raises(UserError, match=r"^model\.depth: missing; an integer is required$"):
        schema.build(Outer, {}, "model")
    with pytest.raises(UserError, match=r"^depth: missing"):
        schema.build(Outer, {}, "")
    with pytest.raises(UserError, match=r"^dept: unknown key"):
        build(path="", dept=3)
    with pytest.raises(UserError, match=r"^inner\.rate: got 2\.0"):
        build(path="", inner={"rate": 2.0})
    with pytest.raises(UserError, match=r"^sides: got \[2, 1\]"):
        schema.build(Box, {"sides": (2, 1)}, "")


def test_round_trip_through_json():
    built = build(
        width=7, inner={"rate": 0.25, "names": ["a"]}, extra={}, shape={"name": "box"}, maybe={"name": "disc"}, scale=2
    )
    text = json.loads(json.dumps(schema.to_dict(built)))
    assert text["shape"] == {"name": "box", "sides": [1, 2]} and text["table"] == {"a": 1.0}
    assert schema.build(Outer, text, "model") == built
    assert schema.to_dict(schema.build(Outer, text, "model")) == schema.to_dict(built)
    assert schema.build(Outer, schema.to_dict(build()), "model") == build()


def test_identity_leaves_out_free_keys_at_every_depth():
    one = build(threads=1, inner={"kernel": "a"}, shape={"name": "disc", "segments": 3}, extra={"kernel": "b"})
    other = build(threads=9, inner={"kernel": "c"}, shape={"name": "disc", "segments": 4}, extra={"kernel": "d"})
    assert schema.to_dict(one, free=False) == schema.to_dict(other, free=False)
    assert schema.to_dict(one) != schema.to_dict(other)
    assert schema.to_dict(one, free=False)["shape"] == {"name": "disc", "radius": 1.0}
    changed = build(inner={"rate": 0.3})
    assert schema.to_dict(one, free=False) != schema.to_dict(changed, free=False)


def test_nearest():
    assert nearest("lerning_rate", ["learning_rate", "momentum"]) == "; did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate"]) == ""


@pytest.mark.parametrize("named", [True, False])
def test_a_group_keeps_the_keys_of_its_default_entry(named):
    """Giving the name of the default entry changes nothing, in nested groups too."""
    edge = {"radius": 2.0} | ({"name": "disc"} if named else {})
    shape = {"width": 0.5, "edge": edge} | ({"name": "ring"} if named else {})
    built = schema.build(Frame, {"shape": shape}, "model").shape
    assert built == Ring(radius=3.0, width=0.5, edge=Disc(radius=2.0, segments=9))


def test_a_group_of_another_entry_replaces_the_default():
    assert schema.build(Frame, {"shape": {"name": "disc"}}, "model").shape == Disc()
    assert schema.build(Frame, {"shape": {"edge": {"name": "box"}}}, "model").shape == Ring(radius=3.0, edge=Box())


def test_none_on_the_command_line_can_be_the_name_of_a_choice():
    @dataclasses.dataclass(frozen=True)
    class Positions:
        kind: Literal["learned", "none"] = "learned"

    assert schema.build(Positions, {"kind": None}, "model").kind == "none"


def test_a_default_group_keeps_its_fixed_fields():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        width: int = 1
        fixed: bool = fixed(False)

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = setting(Inner(width=2, fixed=True))

    assert schema.build(Outer, {"inner": {"width": 3}}, "").inner == Inner(3, True)


@dataclasses.dataclass(frozen=True)
class Lamp:
    hours: int = setting(doc="expected life, in hours")
    watts: float = setting(5.0, gt=0, doc="electric power, in watts; 0 is refused")
    colour: Literal["warm", "cold"] = setting("warm", doc="tone of the light")
    label: str = "x"
    shade: Inner = setting(Inner(), doc="the part that dims it")
    history: tuple[Inner, ...] = setting((), doc="shades of the past")
    outline: Any = setting({"name": "disc"}, registry=SHAPES, doc="form of the shade")
    marks: dict[str, Any] = setting({}, each=SHAPES, doc="forms that are drawn, by name")
    serial: int = fixed(1, doc="number of the series")


@dataclasses.dataclass(frozen=True)
class Torch(Lamp):
    """Changes defaults only."""

    watts: float = setting(1.0, gt=0)
    colour: Literal["warm", "cold"] = "cold"
    hours: int = setting(9, doc="hours of one charge")


def test_the_doc_of_a_key_is_inherited_until_it_is_overridden():
    assert schema.key_doc(Torch, "watts") == "electric power, in watts; 0 is refused"
    assert schema.key_doc(Torch, "colour") == "tone of the light"
    assert schema.key_doc(Torch, "hours") == "hours of one charge"
    assert schema.key_doc(Lamp, "hours") == "expected life, in hours"
    assert schema.key_doc(Torch, "label") == "" and schema.key_doc(Torch, "no such key") == ""


def test_the_groups_of_a_key():
    assert schema.groups(Torch, "watts") == {}
    assert schema.groups(Torch, "shade") == schema.groups(Torch, "history") == {"": Inner}
    assert schema.groups(Outer, "extra") == {"": Inner}
    assert schema.groups(Torch, "outline") == schema.groups(Torch, "marks") == {"box": Box, "disc": Disc}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"watts": 0}, "lamp.watts: got 0.0, must be > 0 [watts: electric power, in watts]"),
        ({"watts": "x"}, "lamp.watts: got 'x' (str), must be a number [watts: electric power, in watts]"),
        ({"colour": "hot"}, "lamp.colour: got 'hot' (allowed: 'warm', 'cold') [colour: tone of the light]"),
        ({"hour": 3}, "lamp.hour: unknown key; did you mean 'hours'? (allowed: hours, watts, colour, label, shade, "),
        ({"label": 3}, "lamp.label: got 3 (int), must be a text"),
        ({"shade": {"rate": "x"}}, "lamp.shade.rate: got 'x' (str), must be a number"),
        ({"outline": 3}, "lamp.outline: got 3, must be a group of keys with a name (box, disc) [outline: form of the "),
    ],
)
def test_errors_end_with_the_doc_of_the_key(values, message):
    with pytest.raises(UserError) as caught:
        schema.build(Torch, values, "lamp")
    text = str(caught.value)
    assert text.startswith(message) and "\n" not in text
    assert text.endswith("]") == ("[" in message or "hour" in values), "once, and only where it is known"
    assert text.count("[") <= 1


def test_errors_on_missing_and_misspelt_keys_have_the_doc():
    with pytest.raises(UserError, match=r"^hours: missing; an integer is required \[hours: expected life, in hours\]$"):
        schema.build(Lamp, {}, "")
    with pytest.raises(UserError, match=r"did you mean 'hours'\? .* \[hours: hours of one charge\]$"):
        schema.build(Torch, {"hour": 3}, "")


def test_an_error_inside_a_group_of_a_list_names_its_key():
    with pytest.raises(UserError, match=r"^lamp\.history\[1\]\.rate: got 3\.0, must be < 1$"):
        schema.build(Torch, {"history": [{"rate": 0.5}, {"rate": 3.0}]}, "lamp")
