"""Codecs: how a value of `hf_config` becomes a value of `config` and back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Codec(NamedTuple):
    """Two functions that undo each other: values of `hf_config` to values of `config`, and back.

    With several keys a function takes one argument a key; for several results it returns a tuple. `read` raises
    ValueError for an unsupported value. `null`: None is a value like others, not a key that is left out.
    """

    read: Callable[..., Any]
    write: Callable[..., Any]
    null: bool = False


def _count(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ValueError(f"got {value}, must be at least 1")
    return value


def names(table: Mapping[Any, Any]) -> Codec:
    """Renamed values, {value in transformers: value in ssljax}.

    Of several entries with one meaning the first is written. A value without an entry is written as the first entry of
    the table, so that `Family.unrepresented` reports it.
    """
    back = {value: name for name, value in reversed(list(table.items()))}

    def read(name: Any) -> Any:
        if name not in table:
            raise ValueError(f"{name!r} is not supported (supported: {', '.join(map(str, table))})")
        return table[name]

    return Codec(read, lambda value: back.get(value, next(iter(table))))


def only(value: Any) -> Codec:
    """One supported value (False and null are one), which no key of `config` states."""

    def read(found: Any) -> tuple[()]:
        if (found or None) != (value or None):
            raise ValueError(f"{found!r} is not supported (only {value!r})")
        return ()

    return Codec(read, lambda: value, null=True)


SAME = Codec(lambda value: value, lambda value: value)
OR_NONE = SAME._replace(null=True)
COUNT = Codec(_count, lambda value: value)  # a whole number from 1
PAIR = Codec(lambda *values: values, lambda values: values)  # two keys of `hf_config`, one of `config`
BOTH = Codec(lambda *values: values, lambda *values: values)  # several keys of both, which must be present
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
# (a width of its own, the model's width); the first is None in `config` if they are equal.
OWN_WIDTH = Codec(lambda own, width: (None if own == width else own, width), lambda own, width: (own or width, width))
