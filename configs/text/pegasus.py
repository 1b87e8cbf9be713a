"""Gap sentences: an encoder-decoder writes important sentences of a text without them (PEGASUS, Zhang et al. 2020).

The model is small, with pre-norm blocks and relative positions. The text is books,
or the documentation of Python, in a vocabulary of 2,000 pieces of words.

    ssljax train --config configs/text/pegasus.py --workdir runs/pegasus
    ssljax train --config configs/text/pegasus.py:data=classic-books --workdir runs/pegasus-books
    ssljax train --config configs/text/pegasus.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

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
            model=dict(_texts.BART),
            objective=dict(name="gap_sentences"),
            data=dict(
                **_texts.SOURCES[a["data"]], tokenizer=dict(name="bpe", vocab_size=2_000), mode="windows", seq_len=128
            ),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=dict(**_texts.HELD_OUT[a["data"]], max_examples=256)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=600,
        )
    )
