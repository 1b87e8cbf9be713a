"""Transfer of learning rates over widths: muP beside the standard parametrisation (Yang et al. 2022, fig. 1).

Decoders of three widths train at seven learning rates each. With muP the best rate is that of the narrowest model for
all widths; the argument `mup=false` is the standard parametrisation, whose best rate falls with the width.

    ssljax sweep --config configs/scaling/transfer.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/transfer.py --workdir runs/scaling
    ssljax sweep --config configs/scaling/transfer.py:mup=false --name standard --workdir runs/scaling
"""

import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    mup = arguments(arg, mup=True)["mup"]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset=None, width=32, depth=2, heads=2, mup_base_width=32 if mup else None),
            objective=dict(name="causal_lm"),
            data=dict(source="builtin:python-code", seq_len=64, tokenizer=dict(name="bytes")),
            optimizer=dict(name="adamw", learning_rate=2**-8, weight_decay=0.0, b2=0.95),
            schedule=dict(name="linear", warmup="10%"),
            evals=dict(loss=dict(max_examples=512)),
            log=dict(every_steps=20, trackers=(), pictures=False),
            checkpoint=dict(keep=1),
            batch_size=32,
            steps=300,
            study=dict(
                zip=(("model.width", (32, 64, 128)), ("model.heads", (2, 4, 8))),
                grid=(("optimizer.learning_rate", tuple(2.0**-i for i in range(11, 4, -1))),),
            ),
        )
    )
