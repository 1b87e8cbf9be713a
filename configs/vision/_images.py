"""Image data of the configs in this folder, their augmentation, and the evaluations of features.

The data are "cifar10", "mnist", or "folder": pictures of your own, of any size, which `data.source` names.
"""

import ml_collections

from ssljax.config import arguments

SOURCES = {
    "cifar10": dict(
        source="npz:$SSLJAX_DATA/cifar10_jpeg/{split}.npz",
        keys=dict(image="jpeg@offsets", label="labels"),
        num_classes=10,
    ),
    "mnist": dict(
        source="npz:$SSLJAX_DATA/mnist/mnist.npz",
        keys=dict(train=dict(image="x_train", label="y_train"), test=dict(image="x_test", label="y_test")),
        num_classes=10,
    ),
    # Of a folder, a tenth of the pictures is held out.
    "folder": dict(source=None, split="train[:-10%]", image_size=64, image_fit="squeeze"),
}

DATA = tuple(SOURCES)

PATCH_SIZE = {"cifar10": 4, "mnist": 7, "folder": 8}

# Crops of CIFAR-10 have half the side, so a step is cheap; features are computed at full size.
TWO_VIEWS = {
    "cifar10": dict(size=16, crop_scale=(0.2, 1.0)),
    "mnist": dict(crop_scale=(0.5, 1.0)),
    "folder": dict(size=48, crop_scale=(0.2, 1.0)),
}

# Recipes for small images. Digits lose their meaning when mirrored, and have no colour.
AUGMENT = {
    "cifar10": dict(flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2, blur=0.0),
    "mnist": dict(flip=0.0, jitter=0.5, brightness=0.4, contrast=0.4, gray=0.0, blur=0.2),
}
AUGMENT["folder"] = AUGMENT["cifar10"]

# Local crops show most of the image; smaller ones, as in the papers, give worse features on such small images.
MULTI_CROP = {
    "cifar10": dict(size=16, local_size=12, global_scale=(0.4, 1.0), local_scale=(0.2, 0.6)),
    "mnist": dict(size=28, local_size=21, global_scale=(0.5, 1.0), local_scale=(0.4, 0.8)),
    "folder": dict(size=48, local_size=24, global_scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
}


def crops(data):
    """Two large and two small crops, all by one recipe."""
    recipe = dict(augment=AUGMENT[data], second=None, local=None)
    return dict(name="multi_crop", local_crops=2, **MULTI_CROP[data], **recipe)


# Features of a vision transformer for the probes. The mean of the patches of a digit loses the places of its strokes.
VIT_FEATURE = {"cifar10": "pooled", "mnist": "tokens", "folder": "pooled"}


def vit(patch_size):
    """A vision transformer of 0.15M parameters, for many cheap steps: in a few minutes they give better features than a
    few steps of a larger model. Positions are fixed, since learned ones start near zero and grow slowly."""
    return dict(
        name="vit",
        preset=None,
        width=64,
        depth=3,
        heads=4,
        patch_size=patch_size,
        pool="mean",
        positions="sincos",
    )


def encoder(data):
    """An encoder for a few minutes of training: a vision transformer, or for digits a ResNet of 0.31M parameters, which
    learns their shapes in fewer steps."""
    return dict(name="resnet", preset="micro") if data == "mnist" else vit(PATCH_SIZE[data])


def probes(data, examples=5_000, feature="pooled"):
    """k-NN and linear probes of frozen features, on fixed subsets of the training split and of the test split.

    Folders without classes, or with few pictures of a class, have fewer probes; a line says which are left out.
    """
    common = dict(max_examples=examples, feature=feature)
    if data == "folder":
        common |= dict(fit_split="train[:-10%]", test_split="train[-10%:]", optional=True)
    linear = dict(type="linear", l2=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), **common)
    return dict(
        knn=common,
        linear=linear,
        linear_10=dict(linear, labels_per_class=10, draws=5),
        linear_100=dict(linear, labels_per_class=100, draws=3),
    )


def codes(data):
    """The probes of the codes of an autoencoder, and its error beside that of principal components."""
    splits = dict(fit_split="train[:-10%]", test_split="train[-10%:]") if data == "folder" else {}
    return probes(data, feature="code") | dict(reconstruction=dict(max_examples=5_000, **splits))


def one_view(data, objective, steps, batch_size=128, weight_decay=0.05, warmup="10%", evals=None):
    """The config of a method that sees an image once; `evals` are the probes unless there are others."""
    return ml_collections.ConfigDict(
        dict(
            model=encoder(data),
            objective=objective,
            data=SOURCES[data],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=weight_decay, clip_norm=1.0),
            schedule=dict(name="cosine", warmup=warmup),
            evals=evals or probes(data),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=batch_size,
            steps=steps,
        )
    )


def autoencoder(arg, **objective):
    """The config of an autoencoder, which differs from that of another one in its objective alone."""
    data = arguments(arg, data=DATA)["data"]
    objective = dict(code=32, decoder=dict(hidden=512), **objective)
    return one_view(data, objective, steps=1000, weight_decay=0.01, warmup="5%", evals=codes(data))


def two_views(arg, augment=None, **objective):
    """The config of a method of two views, which differs from those of the others in its objective alone.

    Its augmentation is that of this file, with the keys of `augment`. On digits it has half the steps of `simclr.py`.
    """
    data = arguments(arg, data=DATA)["data"]
    views = dict(name="two_views", **TWO_VIEWS[data], augment=AUGMENT[data], **(augment or {}))
    return ml_collections.ConfigDict(
        dict(
            model=encoder(data),
            objective=dict(**objective, augment=views),
            data=SOURCES[data],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=probes(data),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=120 if data == "mnist" else 500,
        )
    )
