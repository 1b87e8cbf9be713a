"""ALBERT (Lan et al. 2020): one block twice, a narrow table, masked tokens and the order of two segments.

Trains on news in a vocabulary of 4,000 pieces of words; the segments are the halves of a text. `pairs="next"` is the
task of BERT instead: the second segment follows the first, or comes from another text.

    ssljax train --config configs/text/albert.py --workdir runs/albert
    ssljax train --config configs/text/albert.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 2 minutes on one CPU core.
Result: accuracy of the order of two segments of held-out news: 0.973 (untrained 0.509); docs/results.md, section 1.

A text is a file (`text:`) or a line of JSON (`jsonl:`), of which the first 48 tokens are read.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=("ag-news", "files"))["data"]
    shared = dict(name="albert", depth=1, repeats=2, embedding_dim=32, token_types=2, extras=("pair",), pool="mean")
    evals = dict(loss=_texts.HELD_OUT[data])
    objective = dict(name="mlm", pairs="order")
    model = _texts.BERT | shared
    config = _texts.config(data, model, objective, 500, _texts.NEWS_PIECES, evals=evals, batch_size=64)
    config.optimizer.learning_rate = 1e-3  # the order is not learned at 3e-3
    return config
