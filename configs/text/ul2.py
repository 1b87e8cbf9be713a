"""Mixture of denoisers (UL2, Tay et al. 2022): a small T5 writes short spans, long spans, or the end of a text.

The text is the documentation of Python, or books, as bytes.

    ssljax train --config configs/text/ul2.py --workdir runs/ul2
    ssljax train --config configs/text/ul2.py:data=classic-books --workdir runs/ul2-books
    ssljax train --config configs/text/ul2.py:data=files --workdir runs/x --config.data.source=text:DIR/*

Time: 5 minutes on one CPU core.
Result: loss of 2.614 nats per written token on held-out books (untrained 5.801); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    return _texts.config(data, _texts.T5, dict(name="mixture_of_denoisers"), 800, schedule=_texts.COSINE)
