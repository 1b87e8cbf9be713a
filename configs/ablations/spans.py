"""Masked language modelling on news: tokens, words, or spans of words are hidden (Joshi et al. 2020, table 6).

As many tokens are hidden in each run; spans have geometric lengths of at most ten words, and in the last run the two
tokens around a span also predict what is in it. In the paper spans are better than tokens, and than words. The probe
tells topics.

    ssljax sweep --config configs/ablations/spans.py --workdir runs/ablations
    python benchmarks/ablations.py spans --store runs/ablations
"""

import _small

SPANS = (0.2, 10)


def get_config(arg=""):
    axes = dict(
        zip=(
            ("objective.units", ("token", "word", "word", "word")),
            ("objective.spans", (None, None, SPANS, SPANS)),
            ("objective.boundary", (False, False, False, True)),
        ),
        seeds=2,
    )
    evals = dict(linear=_small.probe())
    return _small.study(_small.BERT, dict(name="mlm"), _small.NEWS, 1200, axes, evals, batch_size=64)
