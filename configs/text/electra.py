"""ELECTRA (Clark et al. 2020): a small BERT finds the bytes of a text that a smaller one has replaced.

The generator has a quarter of the width. The text is the documentation of Python, or books. The form is one key:
`electra_15`, `replace_mlm` and `all_tokens_mlm` are the ablations of the paper.

    ssljax train --config configs/text/electra.py --workdir runs/electra
    ssljax train --config configs/text/electra.py:data=classic-books --workdir runs/electra-books
    ssljax train --config configs/text/electra.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: UNMEASURED
Result: UNMEASURED
"""

import _texts
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=dict(_texts.BERT, extras=("replaced",)),
            objective=dict(name="electra", generator=0.25, weight=50.0),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=dict(**_texts.HELD_OUT[a["data"]], max_examples=256)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=669,  # as many FLOPs as configs/text/mlm.py
        )
    )
