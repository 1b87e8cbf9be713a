"""Labels that do not exclude each other, or one that is true or false: the sentiment of sentences about films (SST-2).

Trains a small BERT with rotary positions on characters, from random weights. `objective.column` names the column, one
number or a list of numbers of a text, each 0 or 1.

    ssljax train --config configs/text/multi_label.py --workdir runs/multi_label
    ssljax train --config configs/text/multi_label.py:data=files --workdir runs/x --config.data.source=jsonl:FILE

Time: 2 minutes on one CPU core.
Result: accuracy on held-out sentences: 0.784 (always one answer 0.501); docs/results.md, section 1.
"""

import _texts
import ml_collections

from ssljax.config import arguments

FORM = dict(tokenizer=dict(name="bpe", vocab_size=4_000, lowercase=True), mode="documents", seq_len=48)
DATA = {
    "sst2": dict(source="tsv:$SSLJAX_DATA/sst2/{split}.tsv#text,label", keys=dict(text="text", target="label"), **FORM),
    "files": dict(source=None, keys=dict(text="text", target="labels"), split="train[:-20%]", **FORM),
}


def get_config(arg=""):
    data = arguments(arg, data=tuple(DATA))["data"]
    return ml_collections.ConfigDict(
        dict(
            model=dict(_texts.BERT, depth=2, dropout=0.1, pool="mean"),
            objective=dict(name="multi_label"),
            data=DATA[data],
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=dict(test_split="test" if data == "sst2" else "train[-20%:]")),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=64,
            steps=250,
        )
    )
