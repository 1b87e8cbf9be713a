"""A family of `transformers`: its fields, its tensor rules and its outputs."""

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.interop.canonical import canonical
from ssljax.interop.fields import Declaration, HFConfig, left_out, read_all, write_all
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import Outputs, causal_lm
from ssljax.interop.rules import Rule
from ssljax.models.tokens import TokenConfig


class Head(NamedTuple):
    """A class of `transformers`: the values of `config` that its name states, and the fields that only it has."""

    name: str
    values: Mapping[str, Any] = {}
    fields: tuple[Declaration, ...] = ()

    def fits(self, config: Any) -> bool:
        """Returns True if a configuration has the values of this class (a tuple: its members) and its own fields."""
        stated = all(_holds(getattr(config, name, None), value) for name, value in self.values.items())
        return stated and all(getattr(config, name) for field in self.fields for name in field.names)


def _holds(value: Any, stated: Any) -> bool:
    return set(stated) <= set(value) if isinstance(stated, tuple) else value == stated


class Labels(Declaration):
    """`classes`: the length of `id2label`, or `num_labels`."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("classes",)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        return {"classes": len(hf_config.get("id2label") or ()) or hf_config.get("num_labels", 2)}

    def write(self, config: Any) -> dict[str, Any]:
        names = {str(i): f"LABEL_{i}" for i in range(config.classes)}
        return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of `transformers`."""

    model_type: str  # its name in config.json
    fields: Sequence[Declaration]  # the keys of the configuration; later ones win where several state one key
    heads: Sequence[Head]  # its classes; the first that fits is written, and the last is the bare model
    rules: Callable[[Any], list[Rule]]  # config -> the table of tensors
    outputs: Outputs  # (module, params, inputs, hf_config) -> outputs
    inputs: Inputs  # the inputs that `outputs` reads
    defaults: HFConfig = dataclasses.field(default_factory=dict)  # of `hf_config`, over the defaults of the fields
    model: str = ""  # its name in `ssljax.models`, if another than `model_type`
    prefix: str = ""  # of the names of the inner model, which a file of the bare model leaves out
    # (config, inputs) -> None; raises UserError if the contents of inputs do not fit together
    check_inputs: Callable[[Any, Mapping[str, np.ndarray]], None] = lambda config, inputs: None
    renames: tuple[tuple[str, str], ...] = ()  # patterns of names in other versions, and their replacements
    # (hf_config, names of the tensors) -> the family itself, or one with another table of tensors
    variant: Callable[[HFConfig, Container[str]], "Family"] | None = None
    ignored: tuple[str, ...] = ()  # patterns of tensors that are no parameters
    # {tensor: the one that it repeats}; a file may have both or only the latter
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    zeros: tuple[str, ...] = ()  # tensors of zeros that a file may leave out
    # config -> tensors of `transformers` for which ssljax has no parameter
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.model or self.model_type)

    @property
    def causal(self) -> bool:
        """True if a token attends only to itself and to earlier tokens."""
        return self.outputs is causal_lm

    def complete(self, hf_config: HFConfig) -> dict[str, Any]:
        """An hf_config with the keys that it leaves out."""
        return {"model_type": self.model_type, **left_out(self.fields), **self.defaults, **hf_config}

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        """Values of `config`. Raises UserError for an unsupported value, KeyError for a missing key."""
        head = self._named(hf_config)
        values = read_all([*self.fields, *head.fields], self.complete(hf_config))
        preset = {"preset": None} if "preset" in schema.keys(models.REGISTRY.get(self.model)) else {}
        return {"name": self.model, **preset, **values, **head.values}

    def _named(self, hf_config: HFConfig) -> Head:
        """The class that `architectures` names, or the most similar one; else the bare model."""
        name = (hf_config.get("architectures") or [""])[0]
        task = name.partition("For")[2]

        def likeness(head: Head) -> tuple[bool, ...]:
            return (
                head.name == name,
                bool(task) and head.name.endswith(f"For{task}"),
                "LM" in name and "LM" in head.name,
            )

        return max(reversed(self.heads), key=likeness) if name else Head("")

    def build_config(self, hf_config: HFConfig, path: str, **keys: Any) -> Any:
        """The configuration for an hf_config, with further keys over it and its preset filled in.

        Raises:
            UserError: a value is unsupported or a key is missing; `path` is the file to blame.
        """
        try:
            values = self.read(hf_config)
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]}: missing") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return schema.build_whole(models.REGISTRY, in_every_stack(values, keys), path).with_preset()

    def write_config(self, config: Any) -> dict[str, Any]:
        """The hf_config of a configuration; `unrepresented` lists what it cannot state."""
        head = next((head for head in self.heads if head.fits(config)), self.heads[-1])
        # The default ids of special tokens in `transformers` belong to another vocabulary.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) if isinstance(config, TokenConfig) else {}
        written = write_all([*self.fields, *head.fields], config)
        return {**ids, **self.complete({"architectures": [head.name], **written})}

    def unrepresented(self, config: Any, hf_config: HFConfig) -> list[str]:
        """The keys of a configuration, with their values, that change when its hf_config is read again."""
        return _differences(canonical(config), canonical(self.build_config(hf_config, "export")), "model")


def causal_heads(name: str) -> tuple[Head, ...]:
    """The classes of a decoder."""
    return Head(f"{name}ForCausalLM"), Head(f"{name}Model")


def _differences(config: Mapping[str, Any], again: Mapping[str, Any], path: str) -> list[str]:
    """The keys with other values, "path.key: value"; of groups that both have, the keys within."""
    out = []
    for name, value in config.items():
        other, key = again.get(name), f"{path}.{name}"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            out += _differences(value, other, key)
        elif value != other:
            out.append(f"{key}: {value!r}")
    return out


def in_every_stack(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values with keys added to those of their groups that are stacks of blocks, or to themselves if none is."""
    parts = {k: in_every_stack(v, keys) for k, v in values.items() if isinstance(v, Mapping) and "width" in v}
    return {**values, **(parts or keys)}
