"""Gap sentences: an encoder-decoder writes important sentences of a text without them (PEGASUS, Zhang et al. 2020).

The model is small, with pre-norm blocks and relative positions. The text is books, or the documentation of Python, in a
vocabulary of 2,000 pieces of words.

    ssljax train --config configs/text/pegasus.py --workdir runs/pegasus
    ssljax train --config configs/text/pegasus.py:data=classic-books --workdir runs/pegasus-books
    ssljax train --config configs/text/pegasus.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 5 minutes on one CPU core.
Result: loss of 5.116 nats per written token on held-out books (untrained 7.613); docs/results.md, section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    return _texts.config(data, _texts.BART, dict(name="gap_sentences"), 600, _texts.PIECES, _texts.COSINE)
