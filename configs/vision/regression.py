"""Regression: a number is predicted from an image.

Trains a ResNet of 0.31M parameters on the values 0 to 9 of the digits of MNIST, or on images and numbers of your own,
a NumPy file with the arrays `image` [N, H, W] or [N, H, W, C] and `target` [N] or [N, K].

    ssljax train --config configs/vision/regression.py --workdir runs/regression
    ssljax train --config configs/vision/regression.py:error=gaussian --workdir runs/regression-gaussian
    ssljax train --config configs/vision/regression.py:data=files --workdir runs/x --config.data.source=npz:FILE

Of your own numbers, `objective.target_mean` and `objective.target_std` give mean and standard deviation.

Time: 2 minutes on one CPU core.
Result: mean absolute error of the value of held-out digits: 0.403, with error=gaussian 0.424 (always the
mean 2.512); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

ERRORS = ("mse", "mae", "huber", "gaussian")
DIGITS = {split: dict(image=f"x_{split}", target=f"y_{split}") for split in ("train", "test")}
DATA = {
    "mnist": dict(source=_images.SOURCES["mnist"]["source"], keys=DIGITS),
    "files": dict(source=None, keys=dict(image="image", target="target"), split="train[:-10%]"),
}


def get_config(arg=""):
    a = arguments(arg, data=tuple(DATA), error=ERRORS)
    digits = a["data"] == "mnist"
    return ml_collections.ConfigDict(
        dict(
            model=_images.encoder("mnist"),
            objective=dict(
                name="regression",
                error=a["error"],
                **(dict(target_mean=4.45, target_std=2.89) if digits else {}),
                augment=dict(name="single", crop_scale=(0.7, 1.0), augment=dict(flip=0.0)),
            ),
            data=DATA[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(loss=dict(max_examples=5_000, test_split="test" if digits else "train[-10%:]")),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=250,
        )
    )
