"""Audio data of the configs in this folder, their spectrograms, and the evaluations of features.

The data are "digits", spoken by six people (Free Spoken Digit Dataset), or "folder": sounds of your own, of any length
and sample rate, which `data.source` names.
"""

KEYS = dict(audio="audio@offsets", label="digit")

SOURCES = {
    "digits": dict(source="npz:$SSLJAX_DATA/fsdd/{split}.npz", keys=KEYS, sample_rate=8000, clip_seconds=0.66),
    # Of a folder, a tenth of the sounds is held out.
    "folder": dict(source=None, split="train[:-10%]", sample_rate=16_000, clip_seconds=1.0),
}

DATA = tuple(SOURCES)

# Mean and standard deviation of the log-mel spectrograms of the digits; those of other sounds are alike.
NORMAL = dict(mean=(-9.3,), std=(5.5,))


def encoder(data, **keys):
    """An audio spectrogram transformer of 0.15M parameters. Patches do not overlap, and positions are fixed, since
    learned ones start near zero and grow slowly."""
    return dict(
        name="ast",
        preset=None,
        width=64,
        depth=3,
        heads=4,
        patch_size=8,
        strides=(8, 8),
        pool="mean",
        positions="sincos",
        spectrogram=dict(mels=40 if data == "digits" else 64),
        **keys,
    )


def probes(data, feature="pooled"):
    """k-NN and linear probes of the digit, or of the class that a folder has, and of the speaker."""
    common = dict(feature=feature)
    if data == "folder":
        common |= dict(fit_split="train[:-10%]", test_split="train[-10%:]", optional=True)
    linear = dict(type="linear", l2=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), **common)
    speaker = dict(keys=KEYS | dict(label="speaker"))
    digit = dict(knn=common, linear=linear)
    if data == "folder":
        return digit
    return digit | dict(speaker_knn=dict(type="knn", **common, **speaker), speaker_linear=dict(linear, **speaker))
