"""The inputs of `Model.forward`: names, shapes and ranges. Other inputs are refused with a message of one line."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError, nearest

_INTEGERS = ("_ids", "label", "labels")  # last parts of the names of integer inputs
_IGNORED = -100  # a label that is not counted
# Options of `transformers` that `forward` accepts and ignores: it always interpolates and returns everything.
ALWAYS = ("interpolate_pos_encoding", "output_hidden_states", "return_dict", "return_loss")


class Inputs(NamedTuple):
    """The inputs of a family: names of `transformers`, and shapes with one letter per axis.

    Axes with one letter have one length: B examples, T tokens, S tokens of an encoder, P predicted tokens, L labels,
    I images, N patches, F mel bins, and C, H, W of an image.
    """

    required: Mapping[str, str]
    optional: Mapping[str, str]

    def plus(self, **optional: str) -> "Inputs":
        """A copy with further optional inputs."""
        return self._replace(optional={**self.optional, **optional})


def check(arrays: Mapping[str, np.ndarray], inputs: Inputs, config: Any, causal: bool) -> None:
    """Raises UserError if an input of a model is unknown or missing, or has another shape, type or range."""
    declared = {**inputs.required, **inputs.optional}
    for name in arrays:
        if name not in declared:
            raise UserError(f"{name}: is no input of the model ({', '.join(declared)}){nearest(name, declared)}")
    for name in inputs.required:
        if name not in arrays:
            raise UserError(f"{name}: missing (inputs: {', '.join(declared)})")
    lengths: dict[str, int] = {}
    allowed = _allowed(config, causal)
    if "pixel_values" in arrays:
        image = getattr(config, "image", getattr(config, "encoder", config))
        lengths["C"] = image.image_shape[-1]
    for name, axes in declared.items():
        if name not in arrays:
            continue
        _check_shape(name, arrays[name].shape, axes, lengths)
        if "W" in axes:
            lengths["N"] = (lengths["H"] // image.patch_size) * (lengths["W"] // image.patch_size)
        if name.endswith(_INTEGERS):
            _check_integers(name, arrays[name], allowed.get(name))


def _check_shape(name: str, shape: tuple[int, ...], axes: str, lengths: dict[str, int]) -> None:
    """Checks one shape, and enters the lengths of new axes into `lengths`."""
    expected = ", ".join(str(lengths.get(axis, axis)) for axis in axes)
    if len(shape) != len(axes) or 0 in shape or any(lengths.setdefault(a, n) != n for a, n in zip(axes, shape)):
        raise UserError(f"{name}: got shape {list(shape)}, must be [{expected}]")


class _Allowed(NamedTuple):
    """Integers from `first` to `last`; with `ignored` also the label that is not counted."""

    first: int
    last: int
    ignored: bool = False


def _check_integers(name: str, array: np.ndarray, allowed: _Allowed | None) -> None:
    if array.dtype.kind not in "iu":
        raise UserError(f"{name}: got {array.dtype}, must be integers")
    if allowed is None:
        return
    wrong = array[((array < allowed.first) | (array > allowed.last)) & ~(allowed.ignored & (array == _IGNORED))]
    if len(wrong):
        more = f" or {_IGNORED}" if allowed.ignored else ""
        raise UserError(f"{name}: got {wrong[0]}, must be in {allowed.first}..{allowed.last}{more}")


def _allowed(config: Any, causal: bool) -> dict[str, _Allowed]:
    """Returns the allowed integers of each input."""
    text = getattr(config, "text", config)
    out = dict.fromkeys(("next_sentence_label", "sentence_order_label"), _Allowed(0, 1, True))
    vocabulary = getattr(text, "vocab_size", None) or 0
    if vocabulary:
        out |= dict.fromkeys(("input_ids", "decoder_input_ids"), _Allowed(0, vocabulary - 1))
    if predicted := getattr(config, "classes", 0) or getattr(text, "readout_size", None) or vocabulary:
        out["labels"] = _Allowed(0, predicted - 1, True)
    if "replaced" in getattr(text, "extras", ()):  # every token has a label
        out["labels"] = _Allowed(0, 1)
    if types := getattr(text, "token_types", 0):
        out["token_type_ids"] = _Allowed(0, types - 1)
    if vocabulary and getattr(text, "positions", "none") != "none":
        # Position 0 is the first row of RoBERTa's table; in OPT it is the row of the first token.
        first = -text.position_offset if causal else 0
        out["position_ids"] = _Allowed(first, first + text.position_offset + text.max_len - 1)
    return out
