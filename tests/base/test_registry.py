"""Lazy look-up of registered names and of import paths, and errors for unknown names."""

import subprocess
import sys

import pytest

from ssljax import data, evals, models, objectives, views
from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.layers.positions import SCALINGS
from ssljax.layers.terms.registry import BIASES
from ssljax.train import optimizers, schedules

REGISTRY = Registry("thing", {"first": "collections:Counter", "second": "no_such_module_xyz:Thing"})


def test_listing_and_lookup():
    import collections

    assert list(REGISTRY) == ["first", "second"] and "first" in REGISTRY and "third" not in REGISTRY
    assert REGISTRY.get("first") is collections.Counter
    assert (
        REGISTRY.get("collections:OrderedDict") is collections.OrderedDict
    )  # a class outside the package, by its import path


def test_entries_are_imported_at_first_use():
    code = (
        "import sys; from ssljax.base.registry import Registry; r = Registry('thing', {'x': 'wave:Wave_read'});"
        "assert 'wave' not in sys.modules; list(r); assert 'wave' not in sys.modules;"
        "r.get('x'); assert 'wave' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name, message",
    [
        ("frist", r"^model\.name: unknown thing 'frist'; did you mean 'first'\? \(known: first, second; or 'package"),
        ("zzz", r"^model\.name: unknown thing 'zzz' \(known: first, second;"),
        (3, r"^model\.name: unknown thing 3"),
        (["first"], r"^model\.name: unknown thing \['first'\]"),
        ("second", r"^model\.name: cannot import 'no_such_module_xyz:Thing': No module named 'no_such_module_xyz'"),
        ("no.such.module:Thing", r"^model\.name: cannot import 'no\.such\.module:Thing': No module named 'no'"),
        ("collections:Cuonter", r"^model\.name: module 'collections' has no 'Cuonter'; did you mean 'Counter'\?"),
        ("collections:", r"^model\.name: module 'collections' has no ''"),
        (":Counter", r"^model\.name: cannot import ':Counter'"),
        (".collections:Counter", r"^model\.name: cannot import '\.collections:Counter'"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(UserError, match=message):
        REGISTRY.get(name, "model.name")


def test_a_plugin_with_a_missing_import(tmp_path, monkeypatch):
    (tmp_path / "stale_plugin_xyz.py").write_text("from collections import NoSuchThing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^x\.name: cannot import 'stale_plugin_xyz:Thing': .*'NoSuchThing'"):
        REGISTRY.get("stale_plugin_xyz:Thing", "x.name")


CODE = {
    "unknown attribute": (
        "import collections\ncollections.no_such_name\n",
        r"AttributeError: .*no_such_name.*xyz\.py:2",
    ),
    "end": ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*xyz\.py:2\)"),
    "syntax": ("x = (\n", r"SyntaxError: .*xyz\.py, line 1"),
    "lazy": ("def __getattr__(name):\n    raise RuntimeError('no')\n", r"RuntimeError: no \(.*xyz\.py:2\)"),
}


@pytest.mark.parametrize("case", CODE)
def test_an_error_inside_a_plugin_is_one_line_with_its_place(case, tmp_path, monkeypatch):
    code, message = CODE[case]
    module = f"broken_{case.replace(' ', '_')}_xyz"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"^x\.name: cannot import '{module}:Thing': {message}") as caught:
        REGISTRY.get(f"{module}:Thing", "x.name")
    assert "\n" not in str(caught.value)


ROOMS = {
    "model": models.REGISTRY,
    "objective": objectives.REGISTRY,
    "optimizer": optimizers.REGISTRY,
    "schedule": schedules.REGISTRY,
    "evaluation": evals.REGISTRY,
    "views": views.REGISTRY,
    "masking": views.MASKINGS,
    "data source": data.REGISTRY,
    "position bias": BIASES,
    "rotary scaling": SCALINGS,
}
# A module, a function, a number, a class of another kind, a dataclass of another kind.
NO_MEMBERS = ("os:path", "os:getcwd", "os:O_RDONLY", "collections:Counter", "ssljax.config:InitFrom")


@pytest.mark.parametrize("room", ROOMS)
def test_only_classes_of_the_kind_are_accepted(room):
    registry = ROOMS[room]
    for name in registry:
        assert registry.get(name) is registry.get(registry.entries[name])
    # (Views and rotary scalings are both callable dataclasses, which cannot be told apart before a call.)
    others = [other.entries[next(iter(other))] for other in ROOMS.values() if other.has != registry.has]
    for name in (*NO_MEMBERS, *others):
        with pytest.raises(UserError, match=rf"^{room}\.name: '{name}' is .*class of a {room}"):
            registry.get(name, f"{room}.name")
