"""The inputs of `Model.forward`: names, shapes and ranges. Anything else is refused in one line."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError, nearest

_WHOLE = ("_ids", "label", "labels")  # ends of the names of inputs that are whole numbers
_IGNORED = -100  # a label that is not counted
# Flags of `transformers` for behaviour that `forward` always has.
ALWAYS = ("interpolate_pos_encoding", "output_hidden_states", "return_dict", "return_loss")


class Inputs(NamedTuple):
    """The inputs of a family by the names of `transformers`, each with a letter an axis; equal letters, equal lengths.

    B examples, T tokens, S tokens of an encoder, P predicted tokens, L labels, I images, N patches, F mel bins, and C,
    H, W of an image.
    """

    required: Mapping[str, str]
    optional: Mapping[str, str]

    def plus(self, **optional: str) -> "Inputs":
        """A copy with further optional inputs."""
        return self._replace(optional={**self.optional, **optional})


def check(given: Mapping[str, np.ndarray], inputs: Inputs, config: Any, causal: bool) -> None:
    """Checks names, shapes and ranges for a model of a configuration.

    Raises:
        UserError: an input is unknown, missing, or has another shape, type or range.
    """
    declared = {**inputs.required, **inputs.optional}
    for name in given:
        if name not in declared:
            raise UserError(f"{name}: is no input of the model ({', '.join(declared)}){nearest(name, declared)}")
    for name in inputs.required:
        if name not in given:
            raise UserError(f"{name}: missing (inputs: {', '.join(declared)})")
    lengths: dict[str, int] = {}
    allowed = _allowed(config, causal)
    if "pixel_values" in given:
        image = getattr(config, "image", getattr(config, "encoder", config))
        lengths["C"] = image.image_shape[-1]
    for name, axes in declared.items():
        if name not in given:
            continue
        _check_shape(name, given[name].shape, axes, lengths)
        if "W" in axes:
            lengths["N"] = (lengths["H"] // image.patch_size) * (lengths["W"] // image.patch_size)
        if name.endswith(_WHOLE):
            _check_whole(name, given[name], allowed.get(name))


def _check_shape(name: str, shape: tuple[int, ...], axes: str, lengths: dict[str, int]) -> None:
    """Checks one shape, and adds the lengths of new axes to `lengths`."""
    expected = ", ".join(str(lengths.get(axis, axis)) for axis in axes)
    if len(shape) != len(axes) or 0 in shape or any(lengths.setdefault(a, n) != n for a, n in zip(axes, shape)):
        raise UserError(f"{name}: got shape {list(shape)}, must be [{expected}]")


class _Allowed(NamedTuple):
    """Numbers from `first` to `last`, and the label that is not counted where `ignored`."""

    first: int
    last: int
    ignored: bool = False


def _check_whole(name: str, array: np.ndarray, allowed: _Allowed | None) -> None:
    if array.dtype.kind not in "iu":
        raise UserError(f"{name}: got {array.dtype}, must be whole numbers")
    if allowed is None:
        return
    wrong = array[((array < allowed.first) | (array > allowed.last)) & ~(allowed.ignored & (array == _IGNORED))]
    if len(wrong):
        more = f" or {_IGNORED}" if allowed.ignored else ""
        raise UserError(f"{name}: got {wrong[0]}, must be in {allowed.first}..{allowed.last}{more}")


def _allowed(config: Any, causal: bool) -> dict[str, _Allowed]:
    """The range of numbers of each input that is looked up in a table."""
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
        # RoBERTa counts from the first row of the table, OPT from the first row of a text.
        first = -text.position_offset if causal else 0
        out["position_ids"] = _Allowed(first, first + text.position_offset + text.max_len - 1)
    return out
