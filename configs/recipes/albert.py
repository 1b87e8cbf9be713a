"""ALBERT, base to xxlarge (Lan et al. 2020): one block for all layers, a narrow table, and the order of two segments.

Trains on English text in batches of 4,096 rows of 512 tokens for 125,000 steps, with LAMB.

    ssljax inspect --config configs/recipes/albert.py:arch=xxlarge
    ssljax train --config configs/recipes/albert.py --workdir runs/albert --config.data.source=text:DIR/*.txt

Hardware: in the paper 64 to 512 TPU v3; planned for 64 H100 (xxlarge: 256 TPU v5e chips).
Time: not in the paper; not run here: no such hardware.
Result: published average on five tasks: 80.1 (base), 82.4 (large), 85.5 (xlarge), 88.7 (xxlarge), table 2.
Source: Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2020, arXiv:1909.11942, sections 3 and 4.1.
Data: Wikipedia and BooksCorpus, about 16 GB, as files of text, with `--config.data.tokenizer.name=file` and the path of
ALBERT's tokenizer (30,000 ids). The declared number of tokens, 3.6B, is an estimate.
Differs from the paper: lengths of spans are geometric, at most 3 words (there 3, 2 or 1 words with chances 2 : 3 : 6);
all rows have the same length (there a tenth is shorter).
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8x8", "arch=large": "h100:8x8", "arch=xlarge": "h100:8x8", "arch=xxlarge": "v5e:16x16"}


def get_config(arg=""):
    arch = arguments(arg, arch=("base", "large", "xlarge", "xxlarge"))["arch"]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="albert", preset=arch, dropout=0.0, extras=("pooler", "pair"), dtype="bfloat16"),
            objective=dict(name="mlm", rate=0.15, spans=(0.45, 3), pairs="order"),
            data=dict(source="declared:tokens=3600M,text=30000", mode="windows", seq_len=512),
            optimizer=dict(name="lamb", learning_rate=1.76e-3, weight_decay=0.01, clip_norm=1.0),
            schedule=dict(name="linear", warmup=3_125),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=4_096,
            steps=125_000,
        )
    )
