"""Masked autoencoders on MNIST: held-out loss against size and number of images (Henighan et al. 2020).

Vision transformers of four sizes see 48,000 to 384,000 images; 60 % of the patches are hidden. Needs SSLJAX_DATA.

    ssljax sweep --config configs/scaling/masked_images.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/masked_images.py --workdir runs/scaling
    ssljax fit runs/scaling/masked_images --law chinchilla --column tokens=examples
"""

import _digits
import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=_digits.vit(patch_size=4),
            objective=dict(
                name="mae",
                decoder=dict(width=32, depth=1, heads=2),
                mask_ratio=0.6,
                normalize_targets=False,
                augment=dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
            ),
            data=_digits.DATA,
            optimizer=dict(name="adamw", learning_rate=4e-3, weight_decay=0.05, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(loss=dict(max_examples=4096)),
            log=dict(every_steps=50, trackers=(), pictures=False),
            checkpoint=dict(every_steps=1000, keep=1),
            batch_size=32,
            steps=1000,
            study=dict(
                generator=dict(
                    name="tokens",
                    depths=(1, 2, 3, 4),
                    aspect=16,
                    head_dim=16,
                    lengths=tuple(f"{n}k examples" for n in (48, 96, 192, 384)),
                    learning_rate=dict(of="width", power=-1.0),
                ),
            ),
        )
    )
