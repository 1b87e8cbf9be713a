"""A sharp metric over a smooth loss: sums that a decoder gets right as a whole (Schaeffer et al. 2023).

A decoder reads sums of three-digit numbers, such as 347+085=2340 (units first). Three digits of each number cannot be
predicted. `exact_5` is the share of sums whose four digits, and end, are all right, as greedy decoding writes them; it
needs all of them at once. Loss and metric are measured along the run, for three seeds.

    ssljax sweep --config configs/scaling/emergence.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/emergence.py --workdir runs/scaling
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=64, depth=2, heads=4),
            objective=dict(name="causal_lm", last=(1, 5)),
            data=dict(
                source="builtin:addition",
                mode="documents",
                seq_len=14,
                tokenizer=dict(name="bytes"),
            ),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.98, clip_norm=1.0),
            schedule=dict(name="constant", warmup=100),
            evals=dict(loss=dict(test_split="valid", max_examples=2000, every_steps=100)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=256,
            steps=3000,
            study=dict(seeds=3),
        )
    )
