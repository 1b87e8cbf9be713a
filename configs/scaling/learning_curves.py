"""Learning curves: error of a classifier on its training set and on the test set, by the number of labels.

A vision transformer learns MNIST from 60 to 60,000 labels (Cortes et al. 1993; Banko and Brill 2001; Hestness et al.
2017). The training error is measured on the examples that were trained on. Needs SSLJAX_DATA.

    ssljax sweep --config configs/scaling/learning_curves.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/learning_curves.py --workdir runs/scaling
    ssljax fit runs/scaling/learning_curves --law broken --option x=unique_examples --column loss=1-test/accuracy
"""

import _digits
import ml_collections

SIZES = (60, 120, 250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 60_000)


def get_config(arg=""):
    splits = tuple(f"train[:{size}]" for size in SIZES)
    return ml_collections.ConfigDict(
        dict(
            model=_digits.vit(patch_size=7),
            objective=dict(name="classification"),
            data=_digits.DATA,
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(test=dict(type="loss"), train=dict(type="loss", test_split="train[:60]", max_examples=10_000)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=60,
            steps=1200,
            study=dict(zip=(("data.split", splits), ("evals.train.test_split", splits)), seeds=2),
        )
    )
