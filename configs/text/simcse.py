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
    "ag-news": _texts.NEWS,
    "files": {key: value for key, value in _texts.NEWS.items() if key not in ("keys", "num_classes")}
    | dict(source=None, split="train[:90%]"),
}
PROBES = {"ag-news": dict(knn=dict(), linear=dict(l2=_texts.L2)), "files": dict()}


def get_config(arg=""):
    a = arguments(arg, data=tuple(SOURCES))
    return ml_collections.ConfigDict(
        dict(
            model=dict(_texts.BERT, dropout=0.1, pool="mean"),
            objective=dict(name="simcse", projector=dict(output=96)),
            data=SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="linear", warmup="10%"),
            evals=PROBES[a["data"]],
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=150,
        )
    )
