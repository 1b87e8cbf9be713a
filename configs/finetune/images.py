"""Finetuning of a vision transformer with few labels: 1,000 pictures of CIFAR-10, or a folder of classes of your own.

The encoder starts from the run of configs/vision/simclr.py, which saw no labels. Learning rates decay by layer.

    ssljax train --config configs/finetune/images.py --workdir runs/finetuned
    ssljax train --config configs/finetune/images.py:start=random --workdir runs/scratch
    ssljax compare runs/finetuned runs/scratch

Another encoder of the same shape is named by `--config.init_from.path=DIR`; pictures of your own, in one folder for
each class, by `:data=folder` and `--config.data.source=images:DIR`.

Time: 3 minutes on one CPU core.
Result: accuracy on held-out images 0.391 (from random weights 0.345); docs/results.md, section 6.
"""

import ml_collections

from ssljax.config import arguments

DATA = {
    "cifar10": dict(
        source="npz:$SSLJAX_DATA/cifar10_jpeg/{split}.npz",
        keys=dict(image="jpeg@offsets", label="labels"),
        num_classes=10,
        max_examples=1000,
    ),
    "folder": dict(source=None, split="train[:-20%]", image_size=64, image_fit="squeeze"),
}


def get_config(arg=""):
    a = arguments(arg, data=tuple(DATA), start=("pretrained", "random"))
    pretrained = a["start"] == "pretrained"
    return ml_collections.ConfigDict(
        dict(
            init_from=dict(path="runs/simclr" if a["data"] == "cifar10" else "runs/own") if pretrained else None,
            model=dict(
                name="vit",
                preset=None,
                width=64,
                depth=3,
                heads=4,
                patch_size=4 if a["data"] == "cifar10" else 8,
                pool="mean",
                positions="sincos",
            ),
            objective=dict(
                name="classification",
                label_smoothing=0.1,
                augment=dict(name="single", crop_scale=(0.4, 1.0), augment=dict(flip=0.5)),
            ),
            data=DATA[a["data"]],
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                weight_decay=0.05,
                clip_norm=1.0,
                layer_decay=0.75 if pretrained else None,
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(held_out=dict(type="loss", test_split="test" if a["data"] == "cifar10" else "train[-20%:]")),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=300,
        )
    )
