"""Prefix language modelling: a small decoder (Liu et al. 2018; Raffel et al. 2020) continues a text read both ways.

The decoder is a small GPT-2 with rotary positions on bytes of English text, the documentation of Python or books. Each
row is split at a random place. `--config.objective.bidirectional=False` is its control.

    ssljax train --config configs/text/prefix_lm.py --workdir runs/prefix_lm
    ssljax train --config configs/text/prefix_lm.py:data=classic-books --workdir runs/prefix_lm-books
    ssljax train --config configs/text/prefix_lm.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 4 minutes on one CPU core.
Result: bits per byte of the second halves of held-out texts 2.734 (causal attention 2.721, bigram model 3.599, unigram
model 4.575); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    model = dict(name="gpt", preset=None, width=96, depth=3, heads=4, positions="none", rope_theta=10_000)
    held_out = dict(**_texts.HELD_OUT[data], max_examples=1000)
    evals = dict(loss=held_out, perplexity=held_out)
    return _texts.config(data, model, dict(name="prefix_lm"), 1100, schedule=_texts.COSINE, evals=evals)
