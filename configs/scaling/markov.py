"""Irreducible loss of a source of known entropy: the fitted constant E must be the entropy of a Markov chain.

Decoders of three sizes train for four lengths on texts of a Markov chain of second order with 16 symbols. No model can
have a lower expected loss than `ssljax.data.synthetic.floor(64)`, 1.7437 nats per symbol in windows of 64. Shorter
runs stay at the entropy of single symbols, 2.764, and say nothing about the limit.

    ssljax sweep --config configs/scaling/markov.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/markov.py --workdir runs/scaling
    ssljax fit runs/scaling/markov --law chinchilla
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=32, depth=2, heads=2),
            objective=dict(name="causal_lm"),
            data=dict(source="builtin:markov", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=4e-3, weight_decay=0.0, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.0),
            evals=dict(loss=dict(max_examples=4096)),
            log=dict(every_steps=100, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=16,
            steps=1000,
            study=dict(
                generator=dict(
                    name="tokens",
                    depths=(1, 2, 3),
                    aspect=16,
                    head_dim=16,
                    lengths=("2M tokens", "4M tokens", "8M tokens", "16M tokens"),
                    learning_rate=dict(of="width", power=-1.0),
                ),
            ),
        )
    )
