"""Loss against the share of a source: source code in a mixture with documentation (Ye et al. 2024).

A decoder trains on the code and on the English documentation of Python, in bytes. The share of code goes from 2 to
98 %, at a constant number of steps. Both losses are measured on held-out texts: `code` and `docs`.

    ssljax sweep --config configs/scaling/mixture.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/mixture.py --workdir runs/scaling
    ssljax fit runs/scaling/mixture --law mixture --column loss=code/loss
"""

import ml_collections


def get_config(arg=""):
    sources = dict(code="builtin:python-code", docs="builtin:python-docs")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=48, depth=3, heads=3),
            objective=dict(name="causal_lm"),
            data=dict(
                mixture=tuple(dict(source=source) for source in sources.values()),
                seq_len=64,
                tokenizer=dict(name="bytes"),
            ),
            optimizer=dict(name="adamw", learning_rate=4e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals={name: dict(type="loss", source=source, max_examples=512) for name, source in sources.items()},
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=8,
            steps=3000,
            study=dict(
                generator=dict(name="shares", source=0, shares=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.98)),
                seeds=2,
            ),
        )
    )
