"""IsoFLOP curves of a decoder on source code: four budgets by five sizes (Hoffmann et al. 2022, approach 2).

Sizes have one dial, the depth: the width is 12 times the depth, heads are 12 wide, and the learning rate falls with the
width. The text is the source code that every Python carries, in bytes.

    ssljax sweep --config configs/scaling/isoflop.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/isoflop.py --workdir runs/scaling

The argument `budgets` multiplies all budgets: `configs/scaling/isoflop.py:budgets=0.1` is a study of a tenth.
"""

import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    scale = arguments(arg, budgets=1.0)["budgets"]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=48, depth=4, heads=4),
            objective=dict(name="causal_lm"),
            data=dict(source="builtin:python-code", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(loss=dict(max_examples=512)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=8,
            steps=100,
            study=dict(
                generator=dict(
                    name="isoflop",
                    budgets=tuple(scale * budget for budget in (1e12, 2e12, 4e12, 8e12)),
                    depths=(2, 3, 4, 5, 6),
                    aspect=12,
                    head_dim=12,
                    learning_rate=dict(of="width", power=-1.0),
                ),
            ),
        )
    )
