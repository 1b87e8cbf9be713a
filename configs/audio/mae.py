"""Masked autoencoder (He et al. 2022) on spectrograms (Huang et al. 2022): a light decoder restores hidden patches.

Trains an audio spectrogram transformer (Gong et al. 2021) of 0.15M parameters on 1,500 spoken digits of six people,
without labels.

    ssljax train --config configs/audio/mae.py --workdir runs/audio-mae
    ssljax train --config configs/audio/mae.py:data=folder --workdir runs/own --config.data.source=audio:DIR

Time: 3 minutes on one CPU core.
Result: accuracy of a linear probe of held-out spoken digits: 0.657 (mean and deviation of mel bands 0.933, untrained
encoder 0.640); docs/results.md, section 1.

Other objectives of masked patches run on spectrograms too: `mae.py:method=simmim`.
"""

import _sounds
import ml_collections

from ssljax.config import arguments

# Silence after a sound has no variance, by which a patch could be normalised.
METHODS = {
    "mae": dict(mask_ratio=0.7, normalize_targets=False, decoder=dict(width=64, depth=1, heads=2)),
    "simmim": dict(mask_ratio=0.5),
}


def get_config(arg=""):
    a = arguments(arg, data=_sounds.DATA, method=tuple(METHODS))
    return ml_collections.ConfigDict(
        dict(
            model=_sounds.encoder(a["data"], mask_token=a["method"] == "simmim"),
            objective=dict(name=a["method"], **METHODS[a["method"]], **_sounds.NORMAL),
            data=_sounds.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_sounds.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=400,
        )
    )
