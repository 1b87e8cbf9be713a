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
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    shared = dict(name="albert", depth=1, repeats=3, embedding_dim=32, token_types=2, extras=("pooler", "pair"))
    return ml_collections.ConfigDict(
        dict(
            model=_texts.BERT | shared,
            objective=dict(name="mlm", pairs="order"),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=dict(**_texts.HELD_OUT[a["data"]], max_examples=256)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=750,
        )
    )
