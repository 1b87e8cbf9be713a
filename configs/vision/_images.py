"""The image data of these configs, how it is augmented, and what is asked of features."""

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
}

PATCH_SIZE = {"cifar10": 4, "mnist": 4}

# Recipes for small images. Digits lose their meaning when mirrored, and have no colour.
AUGMENT = {
    "cifar10": dict(flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2, blur=0.0),
    "mnist": dict(flip=0.0, jitter=0.5, brightness=0.4, contrast=0.4, gray=0.0, blur=0.2),
}


def probes(examples=10_000):
    """k-NN and linear probes of frozen features, on a fixed subset of the training split and on the test split."""
    return dict(
        knn=dict(max_examples=examples),
        linear=dict(max_examples=examples),
        linear_10=dict(type="linear", labels_per_class=10, draws=5, max_examples=examples),
        linear_100=dict(type="linear", labels_per_class=100, draws=3, max_examples=examples),
    )
