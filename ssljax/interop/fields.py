"""The keys of a configuration, declared once and read in either direction.

`config` is a configuration of ssljax, `hf_config` the content of a config.json of `transformers`. A declaration reads
some keys of `hf_config` into values of `config`, and writes them back.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.codecs import COUNT, SAME, Codec, only

HFConfig = Mapping[str, Any]
_ABSENT: Any = object()


class Declaration:
    """A correspondence between keys of `config` and keys of `hf_config`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of `config`."""
        return ()

    @property
    def defaults(self) -> HFConfig:
        """Values of the keys that a config.json may leave out."""
        return {}

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        """Returns values of `config`. Raises UserError for an unsupported value, KeyError for a missing key."""
        raise NotImplementedError

    def write(self, config: Any) -> dict[str, Any]:
        """Returns values of `hf_config`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Field(Declaration):
    """One or several keys of `config`, and the one or several keys of `hf_config` that state them.

    `default`: the value of a single key that is absent or null, or a tuple with values for the first of several keys.
    Without a default `config` keeps its own; several keys must then be present.
    """

    config: str | tuple[str, ...]
    hf_config: str | tuple[str, ...]
    codec: Codec = SAME
    default: Any = _ABSENT

    @property
    def names(self) -> tuple[str, ...]:
        return _as_tuple(self.config)

    @property
    def defaults(self) -> HFConfig:
        values = self.default if isinstance(self.hf_config, tuple) else (self.default,)
        return {} if self.default is _ABSENT else dict(zip(_as_tuple(self.hf_config), values))

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        keys = _as_tuple(self.hf_config)
        absent = (_ABSENT,) if self.codec.null else (_ABSENT, None)
        if isinstance(self.hf_config, str) and hf_config.get(self.hf_config, _ABSENT) in absent:
            return {}
        try:
            values = self.codec.read(*(hf_config[key] for key in keys))
        except ValueError as error:
            raise UserError(f"{', '.join(keys)}: {error}") from error
        return {self.config: values} if isinstance(self.config, str) else dict(zip(self.config, values))

    def write(self, config: Any) -> dict[str, Any]:
        values = self.codec.write(*(_value(config, name) for name in self.names))
        return {self.hf_config: values} if isinstance(self.hf_config, str) else dict(zip(self.hf_config, values))


# Keys of `config` that may be None because others imply them, and the values to write.
_COMPUTED: dict[str, Callable[[Any], Any]] = {
    "kv_heads": lambda config: config.groups,
    "head_dim": lambda config: config.head_width,
    "mlp_dim": lambda config: config.hidden,
    "attention_scale": lambda config: config.attention_scale or config.head_width**-0.5,
    "readout_activation": lambda config: config.readout_activation or config.activation,
    "decoder_depth": lambda config: config.decoder().depth,
    "decoder_heads": lambda config: config.decoder().heads,
    "decoder_mlp_dim": lambda config: config.decoder().hidden,
}


def _value(config: Any, name: str) -> Any:
    return _COMPUTED[name](config) if name in _COMPUTED else getattr(config, name)


def _as_tuple(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys


def constant(name: str, value: Any) -> Field:
    """A key of `config` that has one value in the whole family and no counterpart in `hf_config`."""
    return Field(name, (), Codec(lambda: value, lambda written: ()))


def required(key: str, value: Any, default: Any = _ABSENT) -> Field:
    """A key of `hf_config` with one supported value and no counterpart in `config`."""
    return Field((), key, only(value), default)


def counts(**keys: str | tuple[str, int | None]) -> tuple[Field, ...]:
    """Fields of sizes: key of `config` = key of `hf_config`, or (key of `hf_config`, default)."""
    return tuple(Field(name, *((k, COUNT) if isinstance(k, str) else (k[0], COUNT, k[1]))) for name, k in keys.items())


# The sizes of most configurations, with the defaults of BERT and ViT.
SIZES = (
    *counts(width=("hidden_size", 768), depth=("num_hidden_layers", 12), heads=("num_attention_heads", 12)),
    *counts(mlp_dim=("intermediate_size", 3072)),
)


def sizes(vocabulary: int, width: int, mlp_dim: int, depth: int, heads: int, positions: int) -> dict[str, Any]:
    """Defaults of the keys of SIZES, of the vocabulary and of the number of positions."""
    out = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": mlp_dim, "num_hidden_layers": depth}
    return {**out, "num_attention_heads": heads, "max_position_embeddings": positions}


@dataclasses.dataclass(frozen=True)
class Biases(Declaration):
    """Biases by part of a block.

    keys: {key of `hf_config`: parts whose biases it switches}. bias: `config.bias` and default of the keys; parts
    without a key have this value.
    """

    keys: Mapping[str, Sequence[str]]
    bias: bool

    @property
    def defaults(self) -> HFConfig:
        return dict.fromkeys(self.keys, self.bias)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        switched = [parts for key, parts in self.keys.items() if bool(hf_config[key]) != self.bias]
        return {"bias_except": tuple(part for parts in switched for part in parts)}

    def write(self, config: Any) -> dict[str, Any]:
        return {key: config.has_bias(parts[0]) for key, parts in self.keys.items()}


@dataclasses.dataclass(frozen=True)
class LayerKinds(Declaration):
    """`layer_kinds`, stated by `layer_types` with one entry per layer.

    is_full: (hf_config, number of a layer) -> True if the layer attends to the whole sequence; for a config.json
    without `layer_types`.
    """

    is_full: Callable[[HFConfig, int], bool]

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        types, layers = hf_config.get("layer_types"), range(hf_config["num_hidden_layers"])
        full = [t != "sliding_attention" for t in types] if types else [self.is_full(hf_config, i) for i in layers]
        return {"layer_kinds": shortest_period(["global" if each else "local" for each in full])}

    def write(self, config: Any) -> dict[str, Any]:
        types = {"local": "sliding_attention", "global": "full_attention"}
        kinds = config.layer_kinds
        return {"layer_types": [types[kinds[i % len(kinds)]] for i in range(config.depth)]}


def shortest_period(values: Sequence[Any]) -> tuple[Any, ...]:
    """The fewest first values that give all values of a list when they are repeated."""
    lengths = (n for n in range(1, len(values) + 1) if all(value == values[i % n] for i, value in enumerate(values)))
    return tuple(values[: next(lengths)])


@dataclasses.dataclass(frozen=True)
class Group(Declaration):
    """A nested configuration, stated by a group of `hf_config`, or by keys of the same level if `key` is empty."""

    name: str
    key: str
    fields: Sequence[Declaration]

    @property
    def defaults(self) -> HFConfig:
        return {} if self.key else left_out(self.fields)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        inner = completed(self.fields, {}, group(hf_config, self.key) if self.key else hf_config)
        with within(self.key):
            return {self.name: {"preset": None, **read_all(self.fields, inner)}}

    def write(self, config: Any) -> dict[str, Any]:
        values = write_all(self.fields, getattr(config, self.name))
        return {self.key: values} if self.key else values


def left_out(fields: Iterable[Declaration]) -> dict[str, Any]:
    """Returns the default values of all keys."""
    return {key: value for field in fields for key, value in field.defaults.items()}


def completed(fields: Sequence[Declaration], defaults: HFConfig, hf_config: HFConfig) -> dict[str, Any]:
    """Returns an hf_config with defaults for the keys that are absent, or null where null is no value of the key.

    `defaults` replace defaults of the fields.
    """
    defaults = {**left_out(fields), **defaults}
    null = {key for each in fields if isinstance(each, Field) and each.codec.null for key in _as_tuple(each.hf_config)}
    stated = {k: v for k, v in hf_config.items() if v is not None or k in null or defaults.get(k) is None}
    return {**defaults, **stated}


def read_all(fields: Iterable[Declaration], hf_config: HFConfig) -> dict[str, Any]:
    """Returns values of `config`; later fields replace values of earlier ones."""
    return {name: value for field in fields for name, value in _read(field, hf_config).items()}


def _read(field: Declaration, hf_config: HFConfig) -> dict[str, Any]:
    """Reads a field; a value of another kind than the field expects is an error of the user."""
    try:
        return field.read(hf_config)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        keys = _as_tuple(field.hf_config) if isinstance(field, Field) else tuple(field.defaults)
        got = ", ".join(f"{key}: got {hf_config[key]!r}" for key in keys if key in hf_config)
        raise UserError(f"{got or type(field).__name__}: a value is of a wrong type ({error})") from error


def write_all(fields: Iterable[Declaration], config: Any) -> dict[str, Any]:
    """Returns values of `hf_config`; groups that several fields write are merged."""
    return functools.reduce(_merged, (field.write(config) for field in fields), {})


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    groups = {k: _merged(a[k], v) for k, v in b.items() if isinstance(v, dict) and isinstance(a.get(k), dict)}
    return {**a, **b, **groups}


def group(hf_config: HFConfig, key: str) -> dict[str, Any]:
    """Returns a nested group of keys, empty if null or absent. Raises UserError if the value is no group."""
    value = hf_config.get(key)
    if not isinstance(value, Mapping | None):
        raise UserError(f"{key}: got {value!r}, must be a group of keys")
    return dict(value or {})


@contextlib.contextmanager
def within(key: str) -> Iterator[None]:
    """Prefixes the key of a group to errors of its fields."""
    path = f"{key}." if key else ""
    try:
        yield
    except (UserError, KeyError) as error:
        raise type(error)(f"{path}{error.args[0]}") from error
