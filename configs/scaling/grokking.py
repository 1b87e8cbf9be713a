"""Grokking: sums modulo 97, whose training pairs are known long before the rule is (Power et al. 2022).

A transformer of two blocks reads two numbers and predicts their sum modulo 97. The training pairs are 40 % of the 9,409
pairs. It knows nearly all of them after some hundred steps, when it still fails at most others; with weight decay it
finds the rule later. Without weight decay is the control.

    ssljax sweep --config configs/scaling/grokking.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/grokking.py --workdir runs/scaling
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=128, depth=2, heads=4, pool="last"),
            objective=dict(name="classification"),
            data=dict(
                source="builtin:modular-addition",
                split="train[:80%]",
                mode="documents",
                seq_len=4,
                tokenizer=dict(name="bytes"),
            ),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=1.0, b2=0.98),
            schedule=dict(name="constant", warmup=10),
            evals=dict(
                train=dict(type="loss", test_split="train[:80%]", every_steps=100),
                test=dict(type="loss", test_split="test", every_steps=100),
            ),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=512,
            steps=2500,
            study=dict(grid=(("optimizer.weight_decay", (1.0, 0.0)),), seeds=3),
        )
    )
