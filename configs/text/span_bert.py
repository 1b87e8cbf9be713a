"""SpanBERT (Joshi et al. 2020): a small BERT predicts spans of whole words, also from the two tokens around each span.

The text is news, or the documentation of Python or books in a vocabulary of 2,000 pieces of words.

    ssljax train --config configs/text/span_bert.py --workdir runs/span_bert
    ssljax train --config configs/text/span_bert.py:data=classic-books --workdir runs/span_bert-books
    ssljax train --config configs/text/span_bert.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 3 minutes on one CPU core.
Result: accuracy of a linear probe among four topics of held-out news: 0.564 (masked language modelling 0.512, untrained
encoder 0.454); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=("ag-news", *_texts.DATA))["data"]
    objective, news = dict(name="mlm", units="word", spans=(0.2, 10), boundary=True), data == "ag-news"
    model = _texts.NEWS_BERT if news else dict(_texts.BERT, pool="mean")
    steps, batch_size = (_texts.NEWS_STEPS, 64) if news else (600, 16)
    return _texts.config(data, model, objective, steps, _texts.PIECES, batch_size=batch_size)
