"""Masked diffusion (Sahoo et al. 2024): a language model that restores masked tokens at all rates.

Trains a small BERT with rotary positions on bytes of English text: the documentation of Python, or books.

    ssljax train --config configs/text/masked_diffusion.py --workdir runs/diffusion
    ssljax train --config configs/text/masked_diffusion.py:data=classic-books --workdir runs/diffusion-books
    ssljax train --config configs/text/masked_diffusion.py:data=files --workdir runs/x --config.data.source=text:DIR/*

Time: 6 minutes on one CPU core.
Result: bound of 3.390 bits per byte of held-out books (bigram model 3.614, unigram model 4.589, causal model 2.604);
docs/results.md, section 1.

The number is an upper bound, so it may stand beside the bits per byte of causal models.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    evals = dict(perplexity=dict(**_texts.HELD_OUT[data], max_examples=200))
    return _texts.config(data, _texts.BERT, dict(name="masked_diffusion"), 2000, schedule=_texts.COSINE, evals=evals)
