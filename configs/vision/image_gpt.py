"""Image GPT (Chen et al. 2020): a language model of pixels, whose tokens are clusters of colours.

Trains a transformer of 0.2M parameters on MNIST at 14 x 14 pixels of 16 greys, or on CIFAR-10 at 12 x 12 pixels of 64
colours, without labels. Features for the probes are those of the middle block.

    ssljax train --config configs/vision/image_gpt.py --workdir runs/image_gpt
    ssljax train --config configs/vision/image_gpt.py:data=cifar10 --workdir runs/image_gpt-cifar10
    ssljax train --config configs/vision/image_gpt.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 7 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.790 (raw pixels 0.889, untrained
encoder 0.577); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

SIZES = {
    "mnist": dict(size=14, clusters=16),
    "cifar10": dict(size=12, clusters=64),
    "folder": dict(size=12, clusters=64),
}


def get_config(arg=""):
    a = arguments(arg, data=("mnist", "cifar10", "folder"), form=("causal", "masked"))
    size, clusters = SIZES[a["data"]]["size"], SIZES[a["data"]]["clusters"]
    splits = dict(fit_split="train[:-10%]", test_split="train[-10%:]") if a["data"] == "folder" else {}
    likelihood = dict(perplexity=dict(ngrams=False, max_examples=1000, **splits)) if a["form"] == "causal" else {}
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="imagegpt", preset=None, width=64, depth=4, heads=4, readout_size=clusters),
            objective=dict(name="image_gpt", form=a["form"], clusters=clusters, augment=dict(name="single", size=size)),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.01, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"]) | likelihood | dict(loss=dict(max_examples=1000, **splits)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=300,
        )
    )
