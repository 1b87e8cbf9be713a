"""Masked diffusion (Sahoo et al. 2024): a language model that restores masked tokens at all rates.

Trains a small BERT with rotary positions on bytes of English text: the documentation of Python, or books.

    ssljax train --config configs/text/masked_diffusion.py --workdir runs/diffusion
    ssljax train --config configs/text/masked_diffusion.py:data=classic-books --workdir runs/diffusion-books
    ssljax train --config configs/text/masked_diffusion.py:data=files --workdir runs/x --config.data.source=text:DIR

Time: UNMEASURED
Result: UNMEASURED

The number is an upper bound, so it may stand beside the bits per byte of causal models.
"""

import _texts
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_texts.BERT,
            objective=dict(name="masked_diffusion"),
            data=dict(**_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(perplexity=dict(**_texts.HELD_OUT[a["data"]], max_examples=200)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=1000,
        )
    )
