"""Two tasks of sentence pairs beside masked tokens: the order of segments, or the next one (Lan et al. 2020, table 5).

The text is news; the segments are the halves of a text. A model is also tested on the task that it was not trained for:
both have the classes "in a row" and "not". In the paper, models of the next sentence cannot tell the order, and models
of the order can tell the next sentence.

    ssljax sweep --config configs/ablations/pairs.py --workdir runs/ablations
    python benchmarks/ablations.py pairs --store runs/ablations
"""

import _small


def get_config(arg=""):
    axes = dict(grid=(("objective.pairs", ("next", "order")),), seeds=3)
    evals = dict(loss=dict(test_split="test"), linear=_small.probe())
    model = dict(_small.BERT, token_types=2, extras=("pair",))
    objective = dict(name="mlm", pairs="order")
    return _small.study(model, objective, _small.NEWS, 1000, axes, evals, batch_size=64, learning_rate=1e-3)
