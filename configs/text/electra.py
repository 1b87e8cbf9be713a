"""ELECTRA (Clark et al. 2020): a small BERT finds the tokens of a text that a smaller one has replaced.

The generator has a quarter of the width. The text is news, or the documentation of Python or books as bytes. The form
is one key: `electra_15`, `replace_mlm` and `all_tokens_mlm` are the ablations of the paper.

    ssljax train --config configs/text/electra.py --workdir runs/electra
    ssljax train --config configs/text/electra.py:data=classic-books --workdir runs/electra-books
    ssljax train --config configs/text/electra.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 4 minutes on one CPU core.
Result: accuracy of a linear probe among four topics of held-out news: 0.474 (masked language modelling with as many
FLOPs 0.512, untrained encoder 0.454); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=("ag-news", *_texts.DATA))["data"]
    news = data == "ag-news"
    model = dict(_texts.NEWS_BERT if news else dict(_texts.BERT, pool="mean"), extras=("replaced",))
    steps, batch_size = (1_015, 64) if news else (667, 16)  # as many FLOPs as mlm.py
    objective = dict(name="electra", generator=0.25, weight=50.0)
    return _texts.config(data, model, objective, steps, batch_size=batch_size)
