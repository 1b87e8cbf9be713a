"""Prefix language modelling: a small decoder (Liu et al. 2018; Raffel et al. 2020) continues a text read both ways.

The decoder is a small GPT-2 with rotary positions on bytes of English text, the documentation of Python or books. Each
row is split at a random place.

    ssljax train --config configs/text/prefix_lm.py --workdir runs/prefix_lm
    ssljax train --config configs/text/prefix_lm.py:data=classic-books --workdir runs/prefix_lm-books
    ssljax train --config configs/text/prefix_lm.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: UNMEASURED
Result: UNMEASURED
"""

import _texts
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    held_out = dict(**_texts.HELD_OUT[a["data"]], max_examples=1000)
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=96, depth=3, heads=4, positions="none", rope_theta=10_000),
            objective=dict(name="prefix_lm"),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=held_out, perplexity=held_out),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=1100,
        )
    )
