"""LLaVA (Liu et al. 2023): a decoder that sees an image writes its text.

Trains a small vision transformer and a small LLaMA on pictures of emoji and their names. The control is the same
decoder without the picture.

    ssljax train --config configs/multimodal/llava.py --workdir runs/llava
    ssljax train --config configs/multimodal/llava.py:image=false --workdir runs/llava-blind

Time: 11 minutes on one CPU core, less without the picture.
Result: bits per byte of the names of 200 held-out emoji: 2.951 (without the picture 3.538, bigram model 3.542);
docs/results.md, section 5.
"""

import ml_collections

from ssljax.config import arguments

VOCABULARY = 1024
DECODER = dict(
    preset=None,
    width=128,
    depth=3,
    heads=4,
    kv_heads=2,
    mlp_dim=352,
    dropout=0.1,
)


def get_config(arg=""):
    a = arguments(arg, image=True)
    # The table of embeddings has one more row, for the image token of an exported model.
    seeing = dict(
        name="llava",
        image=dict(preset=None, width=128, depth=4, heads=4, patch_size=16, dropout=0.1),
        text=dict(name="llama", vocab_size=VOCABULARY + 1, **DECODER),
        image_token=VOCABULARY,
        feature_layer=-1,
    )
    augment = dict(name="single", crop_scale=(0.6, 1.0), augment=dict(flip=0.5, jitter=0.5, jitter_strength=0.3))
    return ml_collections.ConfigDict(
        dict(
            model=seeing if a["image"] else dict(name="llama", **DECODER),
            objective=dict(name="captioning", augment=augment) if a["image"] else dict(name="causal_lm"),
            data=dict(
                source="npz:$SSLJAX_DATA/noto_emoji/images64.npz+jsonl:$SSLJAX_DATA/noto_emoji/captions.jsonl",
                keys=dict(image="images", text="caption"),
                where=dict(skin_tone=False),
                tokenizer=dict(name="bpe", vocab_size=VOCABULARY, lowercase=True),
                mode="documents",
                seq_len=16,
            ),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(perplexity=dict(every_steps=100)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=600,
        )
    )
