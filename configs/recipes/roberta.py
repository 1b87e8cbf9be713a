"""RoBERTa-base and RoBERTa-large (Liu et al. 2019): BERT with larger batches, more text and no next sentences.

Trains a masked language model on 160 GB of text: 500,000 steps of 8,192 rows of 512 tokens.

    ssljax inspect --config configs/recipes/roberta.py:arch=large
    ssljax train --config configs/recipes/roberta.py --workdir runs/roberta --config.data.source=text:DIR/*.txt

Hardware: in the paper 1,024 V100; planned for 64 H100 (large: 128 TPU v5p chips).
Time: in the paper about a day for 100,000 steps of the large model; not run here: no such hardware.
Result: published accuracy on MNLI (dev) of the large model: 90.2 % (table 4, 500,000 steps); of the base model 87.6 %
(authors' model card).
Source: Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov 2019, arXiv:1907.11692, section 5 and
table 9.
Data: BooksCorpus, Wikipedia, CC-News, OpenWebText, Stories, as files of text, with `--config.data.tokenizer.name=file`
and the path of RoBERTa's tokenizer (50,265 ids). The declared number of tokens, 36B, is an estimate.
Differs from the paper: rows are windows of the texts end to end (there full sentences). Batches have 8,192 rows (there
8,000).
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8x8", "arch=large": "v5p:4x4x8"}

RATES = {"base": dict(rate=6e-4, warmup=24_000), "large": dict(rate=4e-4, warmup=30_000)}


def get_config(arg=""):
    a = arguments(arg, arch=tuple(RATES))
    r = RATES[a["arch"]]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="roberta", preset=a["arch"], dropout=0.1, dtype="bfloat16"),
            objective=dict(name="mlm", rate=0.15, mask_share=0.8, random_share=0.1),
            data=dict(source="declared:tokens=36B,text=50265", mode="windows", seq_len=512),
            optimizer=dict(name="adamw", learning_rate=r["rate"], weight_decay=0.01, b1=0.9, b2=0.98, eps=1e-6),
            schedule=dict(name="linear", warmup=r["warmup"]),
            mesh=dict(data=1, fsdp=-1),
            microbatches=2 if a["arch"] == "base" else 1,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=8_192,
            steps=500_000,
        )
    )
