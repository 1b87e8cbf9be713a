"""Codecs translate values of `hf_config` to values of `config`, and back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Codec(NamedTuple):
    """Two inverse functions: `read` from values of `hf_config` to values of `config`, `write` back.

    A function takes one argument per key, and returns a tuple for several keys. `read` raises ValueError if a value is
    not supported. `null`: True if null is a value of its keys, not an absent key.
    """

    read: Callable[..., Any]
    write: Callable[..., Any]
    null: bool = False


def _count(value: Any) -> Any:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"got {value!r}, must be an integer")
    if value is not None and value < 1:
        raise ValueError(f"got {value}, must be at least 1")
    return value


def names(table: Mapping[Any, Any]) -> Codec:
    """Renames values by a table {value in `transformers`: value in ssljax}.

    If several names have one value, the first is written. A value without a name is written as the first name of the
    table; it is read back as another value, which `Family.unrepresented` reports.
    """
    back = {value: name for name, value in reversed(list(table.items()))}

    def read(name: Any) -> Any:
        if name not in table:
            raise ValueError(f"{name!r} is not supported (supported: {', '.join(map(str, table))})")
        return table[name]

    return Codec(read, lambda value: back.get(value, next(iter(table))))


def only(value: Any) -> Codec:
    """Supports one value of a key that has no counterpart in `config`. False and null are equal."""

    def read(got: Any) -> tuple[()]:
        if (got or None) != (value or None):
            raise ValueError(f"{got!r} is not supported (only {value!r})")
        return ()

    return Codec(read, lambda: value, null=True)


SAME = Codec(lambda value: value, lambda value: value)
OR_NONE = SAME._replace(null=True)
COUNT = Codec(_count, lambda value: value)  # an integer >= 1
PAIR = Codec(lambda *values: values, lambda values: values)  # two keys of `hf_config`, one of `config`
BOTH = Codec(lambda *values: values, lambda *values: values)  # several keys of each, all of them required
PLAIN = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}
GATED = {name: _GATES[plain] for name, plain in PLAIN.items() if plain in _GATES}
ACTIVATION, GATED_ACTIVATION = names(PLAIN), names(GATED)
# (separate width, width of the model); in `config` the first is None if both are equal.
OWN_WIDTH = Codec(lambda own, width: (None if own == width else own, width), lambda own, width: (own or width, width))
