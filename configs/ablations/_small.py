"""Data, encoders and probes of the ablations: small enough that a study takes a quarter of an hour on two cores."""

import ml_collections

CIFAR10 = dict(
    source="npz:$SSLJAX_DATA/cifar10_jpeg/{split}.npz",
    keys=dict(image="jpeg@offsets", label="labels"),
    num_classes=10,
)
MNIST = dict(
    source="npz:$SSLJAX_DATA/mnist/mnist.npz",
    keys=dict(train=dict(image="x_train", label="y_train"), test=dict(image="x_test", label="y_test")),
    num_classes=10,
)
NEWS = dict(
    source="jsonl:$SSLJAX_DATA/ag_news_small/{split}.jsonl",
    keys=dict(text="text", label="label"),
    num_classes=4,
    tokenizer=dict(name="bpe", vocab_size=4_000),
    mode="documents",
    seq_len=48,
)
RESNET = dict(name="resnet", preset="micro", channels=16)
BERT = dict(
    name="bert",
    preset=None,
    width=64,
    depth=2,
    heads=4,
    norm_position="pre",
    positions="none",
    rope_theta=10_000,
    pool="mean",
)
# Operations on two views of a digit.
DIGITS = dict(
    name="two_views",
    crop_scale=(0.5, 1.0),
    augment=dict(flip=0.0, jitter=0.5, brightness=0.4, contrast=0.4, gray=0.0, blur=0.2),
    second=None,
)


def vit(patch_size):
    return dict(
        name="vit", preset=None, width=64, depth=2, heads=4, patch_size=patch_size, pool="mean", positions="sincos"
    )


def probe(**options):
    """A linear probe of frozen features with 5,000 labels, on 5,000 held-out examples."""
    return dict(max_examples=5_000, l2=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), **options)


def study(model, objective, data, steps, axes, evals, batch_size=128, learning_rate=3e-3):
    """The config of an ablation: a short run, and the keys of the group `study`."""
    return ml_collections.ConfigDict(
        dict(
            model=model,
            objective=objective,
            data=data,
            optimizer=dict(name="adamw", learning_rate=learning_rate, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=evals,
            log=dict(every_steps=25, trackers=(), pictures=False),
            checkpoint=dict(every_steps=10_000, keep=1),
            batch_size=batch_size,
            steps=steps,
            study=axes,
        )
    )
