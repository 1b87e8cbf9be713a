"""Permutation language modelling: a small XLNet (Yang et al. 2019) on bytes of English text.

Each token is predicted from those before it in a random order. Blocks are pre-norm, which learn faster than the paper's
post-norm ones in a short run. The text is the documentation of Python, or books; news (`data=ag-news`) are read in
pieces of words, as by `mlm.py`.

    ssljax train --config configs/text/xlnet.py --workdir runs/xlnet
    ssljax train --config configs/text/xlnet.py:data=classic-books --workdir runs/xlnet-books
    ssljax train --config configs/text/xlnet.py:data=ag-news --workdir runs/xlnet-news
    ssljax train --config configs/text/xlnet.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 4 minutes on one CPU core for news.
Result: accuracy of a linear probe among four topics of held-out news: 0.542 (masked language modelling 0.512, untrained
encoder 0.441); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=(*_texts.DATA, "ag-news"))["data"]
    model = dict(name="xlnet", preset=None, width=96, depth=3, heads=4, norm_position="pre", pool="mean")
    if data == "ag-news":
        model |= dict(width=64, depth=2)
        return _texts.config(data, model, dict(name="xlnet"), _texts.NEWS_STEPS, batch_size=64)
    evals = dict(perplexity=dict(**_texts.HELD_OUT[data], max_examples=200))
    return _texts.config(data, model, dict(name="xlnet"), 600, evals=evals)
