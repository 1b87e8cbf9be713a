"""SpanBERT (Joshi et al. 2020): a small BERT predicts spans of whole words, also from the two tokens around each span.

The text is the documentation of Python, or books, in a vocabulary of 2,000 pieces of words.

    ssljax train --config configs/text/span_bert.py --workdir runs/span_bert
    ssljax train --config configs/text/span_bert.py:data=classic-books --workdir runs/span_bert-books
    ssljax train --config configs/text/span_bert.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: UNMEASURED
Result: UNMEASURED
"""

import _texts
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA)
    text = dict(tokenizer=dict(name="bpe", vocab_size=2_000), mode="windows", seq_len=128)
    return ml_collections.ConfigDict(
        dict(
            model=_texts.BERT,
            objective=dict(name="mlm", units="word", spans=(0.2, 10), boundary=True),
            data=dict(**_texts.SOURCES[a["data"]], **text),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=dict(**_texts.HELD_OUT[a["data"]], max_examples=256)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=600,
        )
    )
