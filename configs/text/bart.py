"""Text infilling and permuted sentences: a small BART (Lewis et al. 2020) writes whole texts from corrupted ones.

The model has pre-norm blocks and relative positions, which grow faster than BART's in a short run. The text is news, or
the documentation of Python or books in a vocabulary of 2,000 pieces of words.

    ssljax train --config configs/text/bart.py --workdir runs/bart
    ssljax train --config configs/text/bart.py:data=classic-books --workdir runs/bart-books
    ssljax train --config configs/text/bart.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 4 minutes on one CPU core for news.
Result: accuracy of a linear probe among four topics of held-out news: 0.694 (masked tokens alone 0.703, untrained
encoder 0.456); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=("ag-news", *_texts.DATA))["data"]
    steps, batch_size = (250, 64) if data == "ag-news" else (600, 16)
    objective = dict(name="text_infilling")
    return _texts.config(data, _texts.BART, objective, steps, _texts.PIECES, _texts.COSINE, batch_size=batch_size)
