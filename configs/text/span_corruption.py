"""Span corruption: a small T5 (Raffel et al. 2020) writes the hidden spans of English text.

The text is the documentation of Python, or books, as bytes.

    ssljax train --config configs/text/span_corruption.py --workdir runs/span_corruption
    ssljax train --config configs/text/span_corruption.py:data=classic-books --workdir runs/span_corruption-books
    ssljax train --config configs/text/span_corruption.py:data=files --workdir runs/x --config.data.source=text:DIR/*

Time: 5 minutes on one CPU core.
Result: loss of 2.602 nats per written token on held-out documentation (untrained 5.799); docs/results.md, section 5.
Written tokens include sentinels, which are easy to predict, so do not compare the number with a causal model's loss.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    return _texts.config(data, _texts.T5, dict(name="span_corruption"), 800, schedule=_texts.COSINE)
