"""The tables of keys in docs/config.md, made from the dataclasses that the keys are.

    python docs/make_config_page.py           # write them
    python docs/make_config_page.py --check   # exit code 1 if the page is stale

What a key means is read where the code says it: "name: ..." in the docstring of its class, the comment on its line or
the lines above it, or the text below it.
"""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union

from ssljax import evals, models, objectives, views
from ssljax.base import schema
from ssljax.config import RunConfig
from ssljax.data import DataConfig, MixturePart, Part, StreamPart, TokenizerConfig
from ssljax.interop.init_from import InitFrom
from ssljax.layers.config import BlockConfig
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.positions import SCALINGS
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.terms.disentangled import DisentangledConfig
from ssljax.models.clip import TextConfig
from ssljax.models.family import TransformerConfig
from ssljax.models.gpt import GPTConfig
from ssljax.models.mae import MAEDecoder
from ssljax.models.tokens import TokenConfig
from ssljax.objectives.dino import Head
from ssljax.objectives.images import ImageObjective
from ssljax.objectives.projector import Projector
from ssljax.parallel import MeshConfig
from ssljax.train import optimizers, schedules
from ssljax.train.checkpoint import Best, CheckpointConfig
from ssljax.train.metrics import LogConfig
from ssljax.views import Augment, ContrastiveAugment

PAGE = pathlib.Path(__file__).parent / "config.md"
START, END = "<!-- keys: python docs/make_config_page.py -->", "<!-- end of keys -->"


class Section(NamedTuple):
    """A heading, the class whose keys it lists, and the class whose keys it shares without listing them again."""

    title: str
    cls: type
    base: type | None = None
    free: bool = False


def sections() -> list[Section]:
    """All groups, in the order of the page."""

    def entries(kind: str, registry: Any, bases: Mapping[str, type], free: bool = False) -> list[Section]:
        return [
            Section(f"{kind} {name}", registry.get(name), bases.get(name) or bases.get(""), free) for name in registry
        ]

    token, image = TokenConfig, ImageObjective
    on_images = {name: image for name in objectives.REGISTRY if issubclass(objectives.REGISTRY.get(name), image)}
    out = [Section("the run", RunConfig)]
    out += [Section("every block", BlockConfig), Section("every model", TransformerConfig, BlockConfig)]
    out += [Section("every token model", token, TransformerConfig)]
    classes = {name: models.REGISTRY.get(name) for name in models.REGISTRY}
    parents = {name: cls.__mro__[1] for name, cls in classes.items()}
    out += entries("model", models.REGISTRY, {n: cls for n, cls in parents.items() if dataclasses.is_dataclass(cls)})
    out += [
        Section("experts", ExpertsConfig),
        Section("disentangled", DisentangledConfig),
        Section("convolution", ConvolutionConfig),
        *entries("rotary scaling", SCALINGS, {}),
    ]
    out += [Section("clip text tower", TextConfig, GPTConfig)]
    out += [Section("every image objective", image)]
    out += entries("objective", objectives.REGISTRY, on_images)
    out += [
        Section("projector", Projector),
        Section("dino head", Head),
        Section("mae decoder", MAEDecoder, BlockConfig),
    ]
    out += entries("views", views.REGISTRY, {})
    out += [Section("augment", Augment), Section("contrastive augment", ContrastiveAugment, Augment)]
    out += [Section("data", DataConfig), Section("tokenizer", TokenizerConfig)]
    out += [Section("mixture part", MixturePart, Part), Section("stream part", StreamPart, Part), Section("part", Part)]
    out += [Section("every optimizer", optimizers.Optimizer)]
    out += entries("optimizer", optimizers.REGISTRY, {"": optimizers.Optimizer})
    out += [Section("every schedule", schedules.Schedule)]
    out += entries("schedule", schedules.REGISTRY, {"": schedules.Schedule})
    out += [Section("mesh", MeshConfig)]
    out += [Section("every evaluation", evals.Evaluation, None, True)]
    out += [Section("every probe", evals.Probe, evals.Evaluation, True)]
    out += [Section("every probe of drawn labels", evals.DrawnProbe, evals.Probe, True)]
    probes = {"knn": evals.DrawnProbe, "linear": evals.DrawnProbe, "few_shot": evals.Probe}
    out += entries("evaluation", evals.REGISTRY, {"": evals.Evaluation, **probes}, True)
    out += [Section("init from", InitFrom), Section("checkpoint", CheckpointConfig), Section("best", Best)]
    return [*out, Section("log", LogConfig)]


@functools.cache
def titles() -> dict[type, str]:
    return {s.cls: s.title for s in sections()}


def tables() -> str:
    """The generated part of the page."""
    links = ", ".join(f"[{s.title}](#{slug(s.title)})" for s in sections())
    return "\n".join([f"Sections: {links}.\n", *(line for section in sections() for line in _section(section))])


def _section(section: Section) -> Iterator[str]:
    yield f"### {section.title}\n"
    yield _told(section.cls) + "\n"
    if section.base in titles():
        yield f"Also the keys of {_link(section.base)}.\n"
    own = [key for key in schema.keys(section.cls) if _shown(section, key)]
    if not own:
        yield "No keys of its own.\n"
        return
    yield "| key | type | default | kind | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    hints = typing.get_type_hints(section.cls)
    for name in own:
        field = schema.keys(section.cls)[name]
        bounds = ", ".join(f"{sign} {bound}" for sign, bound in field.metadata.get("bounds", {}).items())
        form = _form(hints[name], field) + (f", {bounds}" if bounds else "")
        kind = "free" if section.free or field.metadata.get("free") else "identity"
        cells = (f"`{name}`", form, _default(field), kind, meaning(section.cls, name))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _shown(section: Section, name: str) -> bool:
    """Whether the base section does not say the same of this key already."""
    base = section.base and schema.keys(section.base).get(name)
    return not base or (base.default, _made(base)) != (_plain_default(section.cls, name))


def _plain_default(cls: type, name: str) -> tuple[Any, Any]:
    field = schema.keys(cls)[name]
    return field.default, _made(field)


def _made(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _form(hint: Any, field: dataclasses.Field) -> str:
    registry = field.metadata.get("registry")
    if registry is not None:
        return f"group chosen by `name`: {', '.join(f'`{n}`' for n in registry)}"
    return _type(hint)


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments)
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        inner = [_type(arguments[0])] if arguments[1:] == (Ellipsis,) else [_type(a) for a in arguments]
        return f"list of {inner[0]}" if len(inner) == 1 else f"({', '.join(inner)})"
    if origin is dict or hint is dict:
        return f"name -> {_type(arguments[1])}" if arguments and arguments[1] is not Any else "mapping"
    if dataclasses.is_dataclass(hint):
        return f"group {_link(typing.cast(type, hint))}"
    return {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "none"}.get(hint, "any")


def _link(cls: type) -> str:
    title = titles()[cls]
    return f"[{title}](#{slug(title)})"


def slug(heading: str) -> str:
    """The anchor of a Markdown heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _default(field: dataclasses.Field) -> str:
    value = _made(field) if field.default is dataclasses.MISSING else field.default
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        plain = type(value)()
        other = {k: getattr(value, k) for k in schema.keys(type(value)) if getattr(value, k) != getattr(plain, k)}
        return "its defaults" + "".join(f", `{k}={v!r}`" for k, v in other.items())
    if field.metadata.get("registry") is not None and isinstance(value, Mapping):
        return f"`{value['name']}`"
    return "none" if value is None else f"`{value!r}`"


# ---- what a key means


def meaning(cls: type, name: str) -> str:
    """What the code says of a key, from the nearest class that says anything; "" if none does."""
    for owner in cls.__mro__[:-1]:
        said = _documented(owner).get(name) or _commented(owner).get(name)
        if said:
            return said
    return ""


@functools.cache
def _documented(cls: type) -> dict[str, str]:
    """name -> text of "name: text" and "name, name: text" in a docstring."""
    if not cls.__doc__ or not dataclasses.is_dataclass(cls):
        return {}
    names = "|".join(sorted(schema.keys(cls), key=len, reverse=True))
    if not names:
        return {}
    doc = inspect.cleandoc(cls.__doc__)
    found = {}
    pattern = re.compile(rf"(?:^[ ]*|(?<=[.\)] ))((?:{names})(?:, (?:{names}))*): ", re.MULTILINE)
    items = list(pattern.finditer(doc))
    for item, following in zip(items, [*items[1:], None]):
        text = doc[item.end() : following.start() if following else None]
        text = " ".join(re.split(r"\n\s*\n|\n\w+:\n", text)[0].split())
        for name in item[1].split(", "):
            found[name] = text.rstrip(".")
    return found


@functools.cache
def _commented(cls: type) -> dict[str, str]:
    """name -> the text below a field, the comment on its line, or the comment lines above it."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    found = {}
    for node, following in zip(body, [*body[1:], None]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        after = re.search(r"#(.*)$", lines[node.end_lineno - 1]) if node.end_lineno else None
        above = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("# "))
        if below:
            text = str(following.value.value)  # type: ignore[union-attr]
        else:
            text = after[1] if after else " ".join(above)
        found[node.target.id] = " ".join(text.split()).rstrip(".")
    return found


def _told(cls: type) -> str:
    """The docstring of a class up to where it begins to tell of its keys one by one."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    names = "|".join(schema.keys(cls)) or "-"
    head = re.split(rf"\n+(?:Attributes:\n|[ ]*(?:{names})(?:, (?:{names}))*: )", doc)[0]
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", head))


def page(text: str) -> str:
    """The page with its generated part made anew."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    text = PAGE.read_text()
    if "--check" in sys.argv:
        return int(page(text) != text)
    PAGE.write_text(page(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
