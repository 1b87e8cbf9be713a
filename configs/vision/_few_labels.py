"""Data of the semi-supervised configs: few labelled images, and all images without labels."""

import _images
import ml_collections

DATA = ("mnist", "cifar10", "folder")
LABELS = {"cifar10": 1000, "mnist": 100}


def sources(data, ratio):
    """The first images with labels, and `ratio` images of the whole training split for each of them in a batch.

    Of a folder all images have labels, unless `data.streams.unlabeled.source` names another folder.
    """
    source = _images.SOURCES[data]
    if data == "folder":
        return dict(source, streams=dict(unlabeled=dict(split=source["split"], ratio=float(ratio))))
    keys = source["keys"]
    images = {"train": {"image": keys["train"]["image"]}} if "train" in keys else {"image": keys["image"]}
    unlabeled = dict(keys=images, split="train", ratio=float(ratio))
    return dict(source, split=f"train[:{LABELS[data]}]", streams=dict(unlabeled=unlabeled))


WEAK = {
    "cifar10": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
    "folder": dict(name="single", size=48, crop_scale=(0.6, 1.0), augment=dict(flip=0.5)),
}
STRONG = {
    "cifar10": dict(
        name="single",
        crop_scale=(0.5, 1.0),
        augment=dict(flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2, cutout=1.0),
    ),
    "mnist": dict(
        name="single",
        crop_scale=(0.5, 1.0),
        augment=dict(flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4, cutout=1.0, cutout_size=0.3),
    ),
}
STRONG["folder"] = dict(STRONG["cifar10"], size=48)


def config(data, ratio=7, **objective):
    """The config of a semi-supervised method, which differs from those of the others in its objective alone."""
    return ml_collections.ConfigDict(
        dict(
            model=_images.encoder(data),
            objective=objective,
            data=sources(data, ratio),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%"),
            evals=dict(loss=dict(max_examples=5_000, test_split="train[-10%:]" if data == "folder" else "test")),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=32,
            steps=300,
        )
    )
