"""Masked language modelling: a small BERT (Devlin et al. 2019) with rotary positions on bytes of English text.

The text is the documentation of Python, or books; news (`data=ag-news`) are read in pieces of words.

    ssljax train --config configs/text/mlm.py --workdir runs/mlm
    ssljax train --config configs/text/mlm.py:data=classic-books --workdir runs/mlm-books
    ssljax train --config configs/text/mlm.py:data=ag-news --workdir runs/mlm-news
    ssljax train --config configs/text/mlm.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 7 minutes on one CPU core.
Result: pseudo bits per byte of held-out books 2.411 (bigram model 3.536, unigram model 4.450); docs/results.md,
section 1. Each token is predicted from both sides, so do not compare the number with a causal model's bits per byte.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=(*_texts.DATA, "ag-news"))["data"]
    if data == "ag-news":
        return _texts.config(data, _texts.NEWS_BERT, dict(name="mlm"), _texts.NEWS_STEPS, batch_size=64)
    evals = dict(pseudo_perplexity=dict(**_texts.HELD_OUT[data], max_examples=25))
    return _texts.config(data, _texts.BERT, dict(name="mlm"), 750, evals=evals)
