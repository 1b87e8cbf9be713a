"""SimCSE (Gao et al. 2021): a text finds itself under another dropout mask among the texts of the batch.

Trains a small BERT with rotary positions from scratch on news in a vocabulary of 4,000 pieces of words. The paper
starts from BERT; `init_from` does so here.

    ssljax train --config configs/text/simcse.py --workdir runs/simcse
    ssljax train --config configs/text/simcse.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 5 minutes on one CPU core.
Result: accuracy of k-NN among four topics of held-out news: 0.547 (untrained encoder 0.493, chance 0.250);
docs/results.md, section 1.

Classes of news serve only for the evaluations; texts of your own need none. A text is a file (`text:`) or a line of
JSON (`jsonl:`), of which the first 48 tokens are read.
"""

import _texts
import ml_collections

from ssljax.config import arguments

SOURCES = {
    "ag-news": dict(
        source="jsonl:$SSLJAX_DATA/ag_news_small/{split}.jsonl", keys=dict(text="text", label="label"), num_classes=4
    ),
    "files": dict(source=None, split="train[:90%]"),
}
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PROBES = {"ag-news": dict(knn=dict(), linear=dict(l2=L2)), "files": dict()}


def get_config(arg=""):
    a = arguments(arg, data=tuple(SOURCES))
    return ml_collections.ConfigDict(
        dict(
            model=dict(_texts.BERT, dropout=0.1, pool="mean"),
            objective=dict(name="simcse", projector=dict(output=96)),
            data=dict(**SOURCES[a["data"]], tokenizer=dict(name="bpe", vocab_size=4_000), mode="documents", seq_len=48),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=PROBES[a["data"]],
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=150,
        )
    )
