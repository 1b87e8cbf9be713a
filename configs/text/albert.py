"""ALBERT (Lan et al. 2020): one block twice, a narrow table, masked tokens and the order of two segments.

Trains on news in a vocabulary of 4,000 pieces of words; the segments are the halves of a text. `pairs="next"` is the
task of BERT instead: the second segment follows the first, or comes from another text.

    ssljax train --config configs/text/albert.py --workdir runs/albert
    ssljax train --config configs/text/albert.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: UNMEASURED
Result: UNMEASURED

A text is a file (`text:`) or a line of JSON (`jsonl:`), of which the first 48 tokens are read.
"""

import _texts
import ml_collections

from ssljax.config import arguments

SOURCES = {
    "ag-news": dict(source="jsonl:$SSLJAX_DATA/ag_news_small/{split}.jsonl", keys=dict(text="text")),
    "files": _texts.SOURCES["files"],
}
HELD_OUT = {"ag-news": dict(test_split="test"), "files": _texts.HELD_OUT["files"]}


def get_config(arg=""):
    a = arguments(arg, data=tuple(SOURCES))
    shared = dict(name="albert", depth=1, repeats=2, embedding_dim=32, token_types=2, extras=("pair",), pool="mean")
    return ml_collections.ConfigDict(
        dict(
            model=_texts.BERT | shared,
            objective=dict(name="mlm", pairs="order"),
            data=dict(**SOURCES[a["data"]], tokenizer=dict(name="bpe", vocab_size=4_000), mode="documents", seq_len=48),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=HELD_OUT[a["data"]]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=64,
            steps=400,
        )
    )
