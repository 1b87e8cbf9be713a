"""ALBERT (Lan et al. 2020): one block three times, a narrow table, masked tokens and the order of two segments.

The text is the documentation of Python, or books, as bytes. `pairs="next"` is the task of BERT instead: the second
segment follows the first or comes from another text.

    ssljax train --config configs/text/albert.py --workdir runs/albert
    ssljax train --config configs/text/albert.py:data=classic-books --workdir runs/albert-books
    ssljax train --config configs/text/albert.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: UNMEASURED
Result: UNMEASURED
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_texts.DATA)["data"]
    shared = dict(name="albert", depth=1, repeats=3, embedding_dim=32, token_types=2, extras=("pooler", "pair"))
    return _texts.config(data, _texts.BERT | shared, dict(name="mlm", pairs="order"), steps=750)
