"""SigLIP with ViT-B/16 (Zhai et al. 2023): each of 32,768 x 32,768 pairs of a batch is classified as matching or not.

Trains both towers from random weights on 9 billion pairs.

    ssljax inspect --config configs/recipes/siglip.py
    ssljax train --config configs/recipes/siglip.py --workdir runs/siglip --config.data.source=webdataset:DIR/*.tar

Hardware: in the paper 32 TPU v4 chips; planned for 256 TPU v5e chips.
Time: in the paper 5 days; not run here: no such hardware.
Result: published zero-shot accuracy on ImageNet: 73.4 % (with table 1).
Source: Zhai, Mustafa, Kolesnikov, Beyer 2023, arXiv:2303.15343, sections 3 and 4.
Data: the paper's WebLI is not public; any pairs of a picture and a text will do, with
`--config.data.tokenizer.name=file` and the path of a SentencePiece model of 32,000 ids. The number of rows, a billion,
is an assumption; the length of the run does not depend on it.
Differs from the paper: the warm-up of 20,000 steps is our choice. The weight decay of 1e-4 is not multiplied by the
rate of 1e-3 in the authors' code; here it is, and is 0.1.
"""

import ml_collections

TOPOLOGIES = {"": "v5e:16x16"}


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="siglip", preset="b16", image=dict(dtype="bfloat16"), text=dict(dtype="bfloat16")),
            objective=dict(name="siglip", form="ring", mean=(0.5,), std=(0.5,)),
            data=dict(
                source="declared:rows=1B,image=224x224x3,text=32000",
                image_size=224,
                image_fit="squeeze",
                images="encoded",
                mode="documents",
                seq_len=64,
            ),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="20k steps"),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=32_768,
            steps="9000M examples",
        )
    )
