"""SigLIP (Zhai et al. 2023): each pair of a picture and a text is classified as matching or not.

Trains two small transformers on pictures of emoji and their names.

    ssljax train --config configs/multimodal/siglip.py --workdir runs/siglip

Time: 5 minutes on one CPU core.
Result: the name is among the first five of 200 for a share of 0.187 of held-out pictures (untrained 0.028, with the
softmax loss of `configs/multimodal/clip.py` 0.228); docs/results.md, section 1.

On several devices `--config.objective.form=ring` keeps the loss of a large batch small.
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="siglip",
                image=dict(preset=None, width=128, depth=4, heads=4, patch_size=16),
                text=dict(preset=None, width=128, depth=2, heads=4),
            ),
            objective=dict(
                name="siglip",
                augment=dict(
                    name="single", crop_scale=(0.6, 1.0), augment=dict(flip=0.5, jitter=0.5, jitter_strength=0.3)
                ),
            ),
            data=dict(
                source="npz:$SSLJAX_DATA/noto_emoji/images64.npz+jsonl:$SSLJAX_DATA/noto_emoji/captions.jsonl",
                keys=dict(image="images", text="caption"),
                where=dict(skin_tone=False),
                tokenizer=dict(name="bpe", vocab_size=1024, lowercase=True),
                mode="documents",
                seq_len=16,
            ),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(retrieval=dict()),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=300,
        )
    )
