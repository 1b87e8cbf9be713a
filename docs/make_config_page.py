"""Writes the tables of keys in docs/config.md from the configuration dataclasses.

    python docs/make_config_page.py           # write them
    python docs/make_config_page.py --check   # exit code 1 if the page is stale

The meaning of a key is the `doc` of its `setting(...)`; the paragraph above a table is the docstring of its class.
"""

import dataclasses
import functools
import inspect
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union

from ssljax import evals, models, objectives, views
from ssljax.base import schema
from ssljax.base.registry import Registry
from ssljax.config import InitFrom, RunConfig
from ssljax.data import DataConfig, MixturePart, SourceConfig, StreamPart, TokenizerConfig
from ssljax.layers.config import BlockConfig
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.positions import SCALINGS
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.terms.disentangled import DisentangledConfig
from ssljax.models.clip import TextConfig
from ssljax.models.context import ContextConfig
from ssljax.models.family import TransformerConfig
from ssljax.models.mae import MAEDecoder
from ssljax.models.tokens import TokenConfig
from ssljax.objectives.contrastive.labelled import Labelled
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.distillation.dino import Head
from ssljax.objectives.generative.autoencoder import ImageDecoder
from ssljax.objectives.images import ImageObjective
from ssljax.objectives.masked.adversary import Adversary
from ssljax.objectives.masked.patches import PatchObjective
from ssljax.objectives.pretext.puzzle import Puzzle
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.semi_supervised.semi_supervised import SemiSupervised
from ssljax.objectives.supervised.regression import Targets
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import TwoView
from ssljax.parallel import MeshConfig
from ssljax.train import optimizers, schedules
from ssljax.train.checkpoint import Best, CheckpointConfig, EarlyStopping
from ssljax.train.metrics import LogConfig
from ssljax.views import Augment, ContrastiveAugment, LogMel

PAGE = pathlib.Path(__file__).parent / "config.md"
START, END = "<!-- keys: python docs/make_config_page.py -->", "<!-- end of keys -->"


class Section(NamedTuple):
    """A heading and a table of keys."""

    title: str
    cls: type
    free: bool = False  # True: every key is free


def sections() -> list[Section]:
    """All sections, in the order of the page."""
    return [
        Section("the run", RunConfig),
        Section("every block", BlockConfig),
        Section("every model", TransformerConfig),
        Section("every token model", TokenConfig),
        *_of_registry("model", models.REGISTRY),
        Section("experts", ExpertsConfig),
        Section("disentangled", DisentangledConfig),
        Section("convolution", ConvolutionConfig),
        Section("spectrogram", LogMel),
        *_of_registry("rotary scaling", SCALINGS),
        Section("clip text tower", TextConfig),
        Section("every image objective", ImageObjective),
        Section("every contrastive objective", ContrastiveObjective),
        Section("every two-view objective", TwoView),
        Section("every objective of metric learning", Labelled),
        Section("every objective of masked patches", PatchObjective),
        Section("every pretext objective", Puzzle),
        Section("every semi-supervised objective", SemiSupervised),
        Section("every objective of numbers", Targets),
        *_of_registry("objective", objectives.REGISTRY),
        Section("projector", Projector),
        Section("predictor", Predictor),
        Section("teacher", Teacher),
        Section("adversary", Adversary),
        Section("dino head", Head),
        Section("mae decoder", MAEDecoder),
        Section("image decoder", ImageDecoder),
        Section("cpc context", ContextConfig),
        *_of_registry("views", views.REGISTRY),
        Section("every masking", views.Masking),
        *_of_registry("masking", views.MASKINGS),
        Section("augment", Augment),
        Section("contrastive augment", ContrastiveAugment),
        Section("data", DataConfig),
        Section("tokenizer", TokenizerConfig),
        Section("mixture part", MixturePart),
        Section("stream part", StreamPart),
        Section("part", SourceConfig),
        Section("every optimizer", optimizers.Optimizer),
        *_of_registry("optimizer", optimizers.REGISTRY),
        Section("every schedule", schedules.Schedule),
        *_of_registry("schedule", schedules.REGISTRY),
        Section("mesh", MeshConfig),
        Section("every evaluation", evals.Evaluation, free=True),
        Section("every probe", evals.Probe, free=True),
        Section("every probe of drawn labels", evals.DrawnProbe, free=True),
        *(section._replace(free=True) for section in _of_registry("evaluation", evals.REGISTRY)),
        Section("init from", InitFrom),
        Section("checkpoint", CheckpointConfig),
        Section("best", Best),
        Section("early stopping", EarlyStopping),
        Section("log", LogConfig),
    ]


def _of_registry(kind: str, registry: Registry) -> list[Section]:
    return [Section(f"{kind} {name}", registry.get(name)) for name in registry]


@functools.cache
def titles() -> dict[type, str]:
    """The title of the section of each class."""
    return {section.cls: section.title for section in sections()}


def tables() -> str:
    """The generated part of the page."""
    links = ", ".join(f"[{s.title}](#{slug(s.title)})" for s in sections())
    return "\n".join([f"Sections: {links}.\n", *(line for section in sections() for line in _section(section))])


def _section(section: Section) -> Iterator[str]:
    cls = section.cls
    base = next((ancestor for ancestor in cls.__mro__[1:] if ancestor in titles()), None)
    yield f"### {section.title}\n"
    yield _introduction(cls) + "\n"
    if base is not None:
        yield f"Also the keys of {_link(base)}.\n"
    own = [key for key in schema.keys(cls) if base is None or _differs(cls, base, key)]
    if not own:
        yield "No further keys, and the same defaults.\n" if base is not None else "No keys.\n"
        return
    yield "| key | type | default | kind | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    hints = typing.get_type_hints(cls)
    for key in own:
        field = schema.keys(cls)[key]
        bounds = [f"{sign} {bound}" for sign, bound in field.metadata.get("bounds", {}).items()]
        form = ", ".join([_form(hints[key], field), *bounds])
        kind = "free" if section.free or field.metadata.get("free") else "identity"
        cells = (f"`{key}`", form, _default(field), kind, schema.key_doc(cls, key))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _differs(cls: type, base: type, key: str) -> bool:
    """Returns True unless the section of `base` lists this key with the same default and meaning."""
    if key not in schema.keys(base):
        return True
    own, listed = ((schema.default_of(schema.keys(c)[key]), schema.key_doc(c, key)) for c in (cls, base))
    return own != listed


def _form(hint: Any, field: dataclasses.Field) -> str:
    """The type of a key in Markdown."""
    if (registry := field.metadata.get("registry")) is not None:
        return f"group chosen by `name`: {', '.join(f'`{n}`' for n in registry)}"
    if (registry := field.metadata.get("each")) is not None:
        return f"name -> group chosen by `type`: {', '.join(f'`{n}`' for n in registry)}"
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
    value = schema.default_of(field)
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        plain = type(value)()
        other = {k: getattr(value, k) for k in schema.keys(type(value)) if getattr(value, k) != getattr(plain, k)}
        return "its defaults" + "".join(f", `{k}={v!r}`" for k, v in other.items())
    if field.metadata.get("registry") is not None and isinstance(value, Mapping):
        return f"`{value['name']}`"
    return "none" if value is None else f"`{value!r}`"


def _introduction(cls: type) -> str:
    """The docstring of a class, one line per paragraph."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(cls.__doc__ or ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def page(text: str) -> str:
    """The page with its generated part replaced."""
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
