"""A family of `transformers`: its fields, its tensor rules and its outputs."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.interop.canonical import canonical
from ssljax.interop.fields import Declaration, HFConfig, completed, group, read_all, write_all
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import Outputs, causal_lm
from ssljax.interop.rules import Rule
from ssljax.models.tokens import TokenConfig


class Head(NamedTuple):
    """A class of `transformers`: its name, the values of `config` that the name implies, and additional fields."""

    name: str
    values: Mapping[str, Any] = {}
    fields: tuple[Declaration, ...] = ()

    def fits(self, config: Any) -> bool:
        """Returns True if a configuration has the values (all members of a tuple) and the additional fields."""
        stated = all(_holds(getattr(config, name, None), value) for name, value in self.values.items())
        return stated and all(getattr(config, name) for field in self.fields for name in field.names)


def _holds(value: Any, stated: Any) -> bool:
    return set(stated) <= set(value) if isinstance(stated, tuple) else value == stated


class Labels(Declaration):
    """`classes`, stated by the length of `id2label`, or by `num_labels`."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("classes",)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        count = len(group(hf_config, "id2label")) or hf_config.get("num_labels", 2)
        if not isinstance(count, int):
            raise UserError(f"num_labels: got {count!r}, must be an integer")
        return {"classes": count}

    def write(self, config: Any) -> dict[str, Any]:
        names = {str(i): f"LABEL_{i}" for i in range(config.classes)}
        return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of `transformers`."""

    model_type: str  # its name in config.json
    fields: Sequence[Declaration]  # keys of the configuration; the last field of a key is used
    heads: Sequence[Head]  # its classes; the first that fits is written, and the last is the bare model
    rules: Callable[[Any], list[Rule]]  # config -> the table of tensors
    outputs: Outputs  # (module, params, inputs, hf_config) -> outputs
    inputs: Inputs  # the inputs that `outputs` reads
    defaults: HFConfig = dataclasses.field(default_factory=dict)  # of `hf_config`; they replace defaults of fields
    model: str = ""  # its name in `ssljax.models`; empty: `model_type`
    prefix: str = ""  # prefix of the tensors of the inner model; a file of the bare model may lack it
    # (config, inputs) -> None; raises UserError if inputs contradict each other
    check_inputs: Callable[[Any, Mapping[str, np.ndarray]], None] = lambda config, inputs: None
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) of names in other versions of the format
    # hf_config of an early version -> of the current one
    current: Callable[[HFConfig], HFConfig] = lambda hf_config: hf_config
    # (hf_config, names of the tensors) -> the family, or another one of the same name
    variant: Callable[[HFConfig, Collection[str]], "Family"] | None = None
    ignored: tuple[str, ...] = ()  # patterns of tensors that are not parameters
    # {tensor: another with the same values}; a file may have both or only the second
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tower: bool = False  # one tower of a pair of towers; an export prefers an architecture of its own
    zeros: tuple[str, ...] = ()  # tensors that a file may leave out if they are zero
    # config -> tensors of `transformers` that have no parameter in ssljax
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.model or self.model_type)

    @property
    def causal(self) -> bool:
        """True if a token attends only to itself and to earlier tokens."""
        return self.outputs is causal_lm

    def complete(self, hf_config: HFConfig) -> dict[str, Any]:
        """Returns an hf_config with defaults for the keys that it leaves out."""
        return completed(self.fields, {"model_type": self.model_type, **self.defaults}, self.current(hf_config))

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        """Returns values of `config`. Raises UserError for an unsupported value, KeyError for a missing key."""
        head = self._named(hf_config)
        values = read_all([*self.fields, *head.fields], self.complete(hf_config))
        preset = {"preset": None} if "preset" in schema.keys(models.REGISTRY.get(self.model)) else {}
        return {"name": self.model, **preset, **values, **head.values}

    def _named(self, hf_config: HFConfig) -> Head:
        """Returns the class that `architectures` names, else a similar one, else the bare model."""
        named = hf_config.get("architectures") or [""]
        if not isinstance(named, list) or not isinstance(named[0], str):
            raise UserError(f"architectures: got {named!r}, must be a list of names")
        name = named[0]
        task = name.partition("For")[2]

        def likeness(head: Head) -> tuple[bool, ...]:
            return (
                head.name == name,
                bool(task) and head.name.endswith(f"For{task}"),
                "LM" in name and "LM" in head.name,
            )

        return max(reversed(self.heads), key=likeness) if name else Head("")

    def build_config(self, hf_config: HFConfig, path: str, **keys: Any) -> Any:
        """Returns the configuration for an hf_config, with its preset filled in.

        Args:
            hf_config: content of a config.json.
            path: path of the file, for messages.
            **keys: keys that are set in every stack of blocks.

        Raises:
            UserError: a value is unsupported, or a key is missing.
        """
        try:
            values = self.read(hf_config)
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]}: missing") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return schema.build_whole(models.REGISTRY, in_every_stack(values, keys), path).with_preset()

    def write_config(self, config: Any) -> dict[str, Any]:
        """Returns the hf_config of a configuration; `unrepresented` lists the keys that it cannot state."""
        head = next((head for head in self.heads if head.fits(config)), self.heads[-1])
        # The default ids of special tokens in `transformers` belong to another vocabulary.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) if isinstance(config, TokenConfig) else {}
        written = write_all([*self.fields, *head.fields], config)
        return {**ids, **self.complete({"architectures": [head.name], **written})}

    def unrepresented(self, config: Any, hf_config: HFConfig) -> list[str]:
        """Returns "key: value" for keys of a configuration that change when its hf_config is read again."""
        return _differences(canonical(config), canonical(self.build_config(hf_config, "export")), "model")


def causal_heads(name: str) -> tuple[Head, ...]:
    """The classes of a decoder: with a language-modelling head, and without."""
    return Head(f"{name}ForCausalLM"), Head(f"{name}Model")


def _differences(config: Mapping[str, Any], again: Mapping[str, Any], path: str) -> list[str]:
    """Returns "path.key: value" for keys with different values; groups are compared key by key."""
    out = []
    for name, value in config.items():
        other, key = again.get(name), f"{path}.{name}"
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            out += _differences(value, other, key)
        elif value != other:
            out.append(f"{key}: {value!r}")
    return out


def in_every_stack(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Adds keys to all groups that configure a stack of blocks, or to the values themselves if there is none."""
    parts = {k: in_every_stack(v, keys) for k, v in values.items() if isinstance(v, Mapping) and "width" in v}
    return {**values, **(parts or keys)}
