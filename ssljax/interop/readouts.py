"""Read-outs of a model, found in the tensors of its file: config.json does not always state them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssljax.interop.family import Family
from ssljax.interop.tensors import Tensors
from ssljax.models.tokens import TokenConfig

_WITH_READOUT = re.compile("LM|ForPreTraining|ForConditionalGeneration|ForCausalImageModeling")  # names of classes
_EXTRAS = {"pooler": "pooler/kernel", "pair": "pair/kernel", "replaced": "replaced_dense/kernel"}


def fit_readouts(
    family: Family, config: Any, hf_config: Mapping[str, Any], tensors: Tensors, strict: bool
) -> tuple[Any, Sequence[str]]:
    """Returns the configuration with the read-outs of the file, and the tensors that repeat the token table.

    If config.json names a class with a read-out and the file is not a bare model, the read-outs of the class are
    required, and the matrix may be missing only if it is tied. Otherwise the tensors decide. They always decide about
    a pooler, which is optional in `transformers`. Without `strict`, the tensors decide about ties and add heads, and
    missing read-outs keep their initial values.
    """
    if "pooler" in getattr(config, "heads_on", ()) and not any("pooler." in name for name in tensors):
        return dataclasses.replace(config, heads_on=()), ()
    if not isinstance(config, TokenConfig):
        return config, ()
    has_class = strict and not tensors.bare and _WITH_READOUT.search("".join(hf_config.get("architectures") or ()))
    names = {rule.paths[0].removeprefix("decoder/"): rule.tensor for rule in family.rules(config)}
    stored = {path for path, name in names.items() if name in tensors}
    matrix, table = names.get("head_kernel", ""), names["embed/embedding"]
    if "head_kernel" in stored:
        tied = config.tied and table in tensors and np.array_equal(tensors[matrix], tensors[table])
    else:
        tied = config.tied or not has_class or "replaced" in config.extras
    config = dataclasses.replace(config, tied=tied)
    required = config.extras if has_class or not strict else ()
    extras = tuple(name for name, path in _EXTRAS.items() if path in stored or name in required)
    config = dataclasses.replace(config, extras=extras)
    if strict:
        ends = {"head_dense/kernel", "head_norm/scale", "head_bias"} & names.keys()
        optional = not has_class or {names[path] for path in ends} <= set(family.zeros)
        if optional and not ends & stored:
            config = dataclasses.replace(config, readout_transform=False, readout_bias=False)
    return config, [matrix] if tied and "head_kernel" in stored else ()
