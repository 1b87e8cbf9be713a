"""SimCLR on MNIST: error of a linear probe, and the contrastive loss, against size and number of images.

Vision transformers of four sizes see 8,000 to 128,000 images in two views. The loss depends on the batch, which is the
same for all; the probe has 10,000 labels. Needs SSLJAX_DATA.

    ssljax sweep --config configs/scaling/contrastive.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/contrastive.py --workdir runs/scaling
    ssljax fit runs/scaling/contrastive --law chinchilla --column tokens=examples --column loss=1-linear/accuracy
"""

import _digits
import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=_digits.vit(patch_size=7),
            objective=dict(
                name="simclr",
                temperature=0.2,
                augment=dict(
                    name="two_views",
                    crop_scale=(0.5, 1.0),
                    augment=dict(flip=0.0, jitter=0.5, brightness=0.4, contrast=0.4, gray=0.0, blur=0.2),
                ),
            ),
            data=_digits.DATA,
            optimizer=dict(name="adamw", learning_rate=4e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(
                loss=dict(max_examples=4096, batch_size=128),
                linear=dict(feature="tokens", max_examples=10_000, l2=(1e-4, 1e-3, 1e-2, 1e-1)),
            ),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=128,
            steps=1000,
            study=dict(
                generator=dict(
                    name="tokens",
                    depths=(1, 2, 3, 4),
                    aspect=16,
                    head_dim=16,
                    lengths=tuple(f"{n}k examples" for n in (8, 16, 32, 64, 128)),
                    learning_rate=dict(of="width", power=-1.0),
                ),
            ),
        )
    )
