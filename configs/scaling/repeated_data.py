"""Repeated data: loss by tokens and by different tokens among them (Muennighoff et al. 2023).

Decoders of three sizes train on 3 to 100 % of the documentation of Python, for four lengths; of the smallest part they
see up to 18 epochs.

    ssljax sweep --config configs/scaling/repeated_data.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/repeated_data.py --workdir runs/scaling
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=64, depth=3, heads=4),
            objective=dict(name="causal_lm"),
            data=dict(source="builtin:python-docs", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=dict(max_examples=1024)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=8,
            steps=1000,
            study=dict(
                grid=(("data.split", tuple(f"train[:{share}%]" for share in (3, 10, 30, 100))),),
                zip=(("model.width", (32, 48, 64)), ("model.depth", (2, 3, 3))),
                generator=dict(name="tokens", lengths=("250k tokens", "500k tokens", "1M tokens", "2M tokens")),
            ),
        )
    )
