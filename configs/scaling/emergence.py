"""A sharp metric over a smooth loss: whole spans of code that a decoder continues without an error (Wei et al. 2022).

One decoder trains for eight lengths, each twice the one before. Its loss per byte falls smoothly; the share of spans of
16 and of 32 bytes that it gets right is near zero for short runs and then rises, since about p^n of them are right if
p of the bytes are (Schaeffer et al. 2023).

    ssljax sweep --config configs/scaling/emergence.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/emergence.py --workdir runs/scaling
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=48, depth=3, heads=3),
            objective=dict(name="causal_lm", spans=(4, 16, 32)),
            data=dict(source="builtin:python-code", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=4e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=dict(max_examples=4096)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=8,
            steps=1000,
            study=dict(
                generator=dict(name="tokens", lengths=tuple(f"{50 * 2**i}k tokens" for i in range(8))),
                seeds=2,
            ),
        )
    )
