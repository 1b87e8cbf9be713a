"""DeepCluster (Caron et al. 2018): an image is classified by the cluster of its own features, which change over time.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/deep_cluster.py --workdir runs/deep_cluster
    ssljax train --config configs/vision/deep_cluster.py:data=mnist --workdir runs/deep_cluster-mnist
    ssljax train --config configs/vision/deep_cluster.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 3 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.822 (raw pixels 0.889, untrained
encoder 0.848); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

AUGMENT = {
    "cifar10": dict(name="single", size=16, crop_scale=(0.3, 1.0), augment=_images.AUGMENT["cifar10"]),
    "mnist": dict(name="single", crop_scale=(0.5, 1.0), augment=_images.AUGMENT["mnist"]),
    "folder": dict(name="single", size=48, crop_scale=(0.3, 1.0), augment=_images.AUGMENT["folder"]),
}


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    objective = dict(name="deep_cluster", clusters=64, queue=4096, refresh=40, components=32, augment=AUGMENT[data])
    optional = dict(fit_split="train[:-10%]", test_split="train[-10%:]", optional=True) if data == "folder" else {}
    evals = _images.probes(data) | dict(k_means=dict(max_examples=5_000, **optional))
    return _images.one_view(data, objective, steps=250 if data == "mnist" else 600, evals=evals)
