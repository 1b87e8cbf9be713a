"""Loss against tokens for the price of the longest run: cool-downs from one trunk (Hägele et al. 2024).

A decoder trains at a constant rate; from four of its steps, the rate falls to zero over a fifth of a run. Each result
is that of a run of this length with the schedule `wsd`. The text is the documentation of Python, in bytes.

    ssljax sweep --config configs/scaling/cooldowns.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/cooldowns.py --workdir runs/scaling
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=64, depth=2, heads=4),
            objective=dict(name="causal_lm"),
            data=dict(source="builtin:python-docs", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="wsd", warmup=20, decay="20%"),
            evals=dict(loss=dict(max_examples=512)),
            log=dict(every_steps=10, trackers=(), pictures=False),
            checkpoint=dict(every_steps=100, keep=1),
            batch_size=32,
            steps=800,
            study=dict(generator=dict(name="cooldowns", lengths=(100, 200, 400, 800))),
        )
    )
