"""Masked language modelling: a small BERT (Devlin et al. 2019) with rotary positions on bytes of English text.

The text is the documentation of Python, or books.

    ssljax train --config configs/text/mlm.py --workdir runs/mlm
    ssljax train --config configs/text/mlm.py:data=classic-books --workdir runs/mlm-books
    ssljax train --config configs/text/mlm.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 7 minutes on one CPU core.
Result: pseudo bits per byte of held-out books 2.411 (bigram model 3.536, unigram model 4.450); docs/results.md,
section 1. Each token is predicted from both sides, so do not compare the number with a causal model's bits per byte.
"""

import _texts
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_texts.BERT,
            objective=dict(name="mlm"),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(pseudo_perplexity=dict(**_texts.HELD_OUT[a["data"]], max_examples=25)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=750,
        )
    )
