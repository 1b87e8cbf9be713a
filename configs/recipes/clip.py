"""CLIP with ViT-B/32 or ViT-B/16 (Radford et al. 2021): pictures and texts of a batch of 32,768 pairs are matched.

Trains both towers from random weights on 400M pairs for 32 epochs.

    ssljax inspect --config configs/recipes/clip.py:arch=b16
    ssljax train --config configs/recipes/clip.py --workdir runs/clip-b32 --config.data.source=webdataset:DIR/*.tar

Hardware: in the paper V100 (256 for its largest ViT); planned for 64 H100 (ViT-B/16: 256 TPU v5e chips).
Time: not published for these models; not run here: no such hardware.
Result: published zero-shot accuracy on ImageNet: 63.2 % (ViT-B/32), 68.6 % (ViT-B/16), table 11.
Source: Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever 2021,
arXiv:2103.00020, section 2.5 and tables 18 to 20.
Data: the paper's 400M pairs are not public; any pairs of a picture and a text will do, with
`--config.data.tokenizer.name=file` and the path of CLIP's tokenizer (49,408 ids).
Differs from the paper: random square crops cover at least 90 % of a picture that is stored at 224 x 224. Parameters are
float32 and activations bfloat16 (there float16).
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8x8", "arch=b16": "v5e:16x16"}


def get_config(arg=""):
    a = arguments(arg, arch=("b32", "b16"))
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="clip",
                preset=a["arch"],
                temperature=0.07,
                image=dict(dtype="bfloat16"),
                text=dict(dtype="bfloat16"),
            ),
            objective=dict(
                name="clip",
                mean=(0.481, 0.458, 0.408),
                std=(0.269, 0.261, 0.276),
                max_scale=100.0,
                augment=dict(name="single", size=224, crop_scale=(0.9, 1.0), augment=dict(crop_ratio=(1.0, 1.0))),
            ),
            data=dict(
                source="declared:rows=400M,image=224x224x3,text=49408",
                image_size=224,
                images="encoded",
                mode="documents",
                seq_len=77,
            ),
            optimizer=dict(name="adamw", learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6),
            schedule=dict(name="cosine", warmup="2k steps"),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=32_768,
            steps="32 epochs",
        )
    )
