"""SimCLR (Chen et al. 2020) on sounds: two views of a sound are matched among all views of the batch.

A view is a random piece of a sound with another loudness and noise, whose spectrogram has masked stripes (SpecAugment,
Park et al. 2019). Trains an audio spectrogram transformer (Gong et al. 2021) of 0.15M parameters on 1,500 spoken digits
of six people, without labels.

    ssljax train --config configs/audio/simclr.py --workdir runs/audio-simclr
    ssljax train --config configs/audio/simclr.py:data=folder --workdir runs/own --config.data.source=audio:DIR

Time: 4 minutes on one CPU core.
Result: accuracy of a linear probe of held-out spoken digits: 0.870 (mean and deviation of mel bands 0.933, untrained
encoder 0.640); docs/results.md, section 1.

Other objectives of two views run on sounds with the same views: `simclr.py:method=barlow_twins`, `byol` or `vicreg`.
"""

import _sounds
import ml_collections

from ssljax.config import arguments

METHODS = {
    "simclr": dict(temperature=0.1),
    "barlow_twins": {},
    "byol": dict(predictor=dict(hidden=256)),
    "vicreg": {},
}


def get_config(arg=""):
    a = arguments(arg, data=_sounds.DATA, method=tuple(METHODS))
    return ml_collections.ConfigDict(
        dict(
            model=_sounds.encoder(a["data"]),
            objective=dict(
                name=a["method"],
                **METHODS[a["method"]],
                projector=dict(hidden=128, output=64),
                augment=dict(name="audio_views"),
                **_sounds.NORMAL,
            ),
            data=_sounds.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_sounds.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=400,
        )
    )
