"""Data of the semi-supervised configs: few labelled images, and all images without labels."""

import _images

DATA = ("cifar10", "mnist")
LABELS = {"cifar10": 1000, "mnist": 100}


def sources(data, ratio):
    """The first images with labels, and `ratio` images of the whole training split for each of them in a batch."""
    source = _images.SOURCES[data]
    keys = source["keys"]
    images = {"train": {"image": keys["train"]["image"]}} if "train" in keys else {"image": keys["image"]}
    unlabeled = dict(source=source["source"], keys=images, split="train", ratio=float(ratio))
    return dict(source, split=f"train[:{LABELS[data]}]", streams=dict(unlabeled=unlabeled))


WEAK = {
    "cifar10": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
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
