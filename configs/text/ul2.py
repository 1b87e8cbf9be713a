"""Mixture of denoisers (UL2, Tay et al. 2022): a small T5 writes short spans, long spans, or the end of a text.

The text is the documentation of Python, or books, as bytes.

    ssljax train --config configs/text/ul2.py --workdir runs/ul2
    ssljax train --config configs/text/ul2.py:data=classic-books --workdir runs/ul2-books
    ssljax train --config configs/text/ul2.py:data=files --workdir runs/x --config.data.source=text:DIR/*

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
            model=dict(
                name="t5", preset=None, width=96, depth=3, heads=4, head_dim=24, vocab_size=320, activation="geglu_tanh"
            ),
            objective=dict(name="mixture_of_denoisers"),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=dict(**_texts.HELD_OUT[a["data"]], max_examples=256)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=800,
        )
    )
