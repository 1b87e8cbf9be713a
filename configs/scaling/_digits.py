"""Data and model of the studies on images: MNIST, and a small vision transformer."""

DATA = dict(
    source="npz:$SSLJAX_DATA/mnist/mnist.npz",
    keys=dict(train=dict(image="x_train", label="y_train"), test=dict(image="x_test", label="y_test")),
    num_classes=10,
)


def vit(patch_size):
    return dict(
        name="vit", preset=None, width=32, depth=2, heads=2, patch_size=patch_size, pool="mean", positions="sincos"
    )
