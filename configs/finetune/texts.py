"""Finetuning of an encoder of text: sentences about films and their sentiment (SST-2), or a table of your own.

The encoder starts from the run of configs/text/mlm.py:data=classic-books, which saw no labels. Learning rates decay by
layer.

    ssljax train --config configs/finetune/texts.py --workdir runs/sentiment
    ssljax train --config configs/finetune/texts.py:start=random --workdir runs/sentiment-scratch
    ssljax compare runs/sentiment runs/sentiment-scratch

Another encoder of the same shape is named by `--config.init_from.path=DIR`; texts of your own, in a table with the
columns `text` and `label` whose rows are in no order, by `:data=files` and `--config.data.source=csv:FILE`.

Time: 6 minutes on one CPU core.
Result: accuracy on held-out sentences 0.603 ± 0.011 (from random weights 0.577 ± 0.011); docs/results.md, section 6.
"""

import ml_collections

from ssljax.config import arguments

FORM = dict(tokenizer=dict(name="bytes"), mode="documents", seq_len=192)
DATA = {
    "sst2": dict(source="tsv:$SSLJAX_DATA/sst2/{split}.tsv#text,label", **FORM),
    "files": dict(source=None, split="train[:-20%]", **FORM),
}


def get_config(arg=""):
    a = arguments(arg, data=tuple(DATA), start=("pretrained", "random"))
    pretrained = a["start"] == "pretrained"
    return ml_collections.ConfigDict(
        dict(
            init_from=dict(path="runs/mlm-books") if pretrained else None,
            model=dict(
                name="bert",
                preset=None,
                width=96,
                depth=3,
                heads=4,
                norm_position="pre",
                positions="none",
                rope_theta=10_000,
                pool="mean",
            ),
            objective=dict(name="classification"),
            data=DATA[a["data"]],
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                weight_decay=0.1,
                clip_norm=1.0,
                layer_decay=0.75 if pretrained else None,
            ),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(held_out=dict(type="loss", test_split="test" if a["data"] == "sst2" else "train[-20%:]")),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=32,
            steps=430,
        )
    )
