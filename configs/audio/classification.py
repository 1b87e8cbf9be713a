"""Supervised classification of sounds: a reference for the methods without labels.

Trains an audio spectrogram transformer (Gong et al. 2021) of 0.15M parameters on 1,500 spoken digits of six people.

    ssljax train --config configs/audio/classification.py --workdir runs/audio
    ssljax train --config configs/audio/classification.py:data=folder --workdir runs/x --config.data.source=audio:DIR

Time: 2 minutes on one CPU core.
Result: accuracy of a linear probe of held-out spoken digits: 0.940 (mean and deviation of mel bands 0.933, untrained
encoder 0.640); docs/results.md, section 1.
"""

import _sounds
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_sounds.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_sounds.encoder(a["data"], dropout=0.1),
            objective=dict(name="classification", label_smoothing=0.1, **_sounds.NORMAL),
            data=_sounds.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_sounds.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=500,
        )
    )
