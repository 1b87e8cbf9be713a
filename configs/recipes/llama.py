"""LLaMA 2 of 70 billion parameters (Touvron et al. 2023): 2 trillion tokens in batches of 4 million.

Trains a decoder with grouped-query attention, in rows of 4,096 tokens.

    ssljax inspect --config configs/recipes/llama.py
    ssljax train --config configs/recipes/llama.py --workdir runs/llama-70b --config.data.source=parquet:DIR/*.parquet

Hardware: in the paper clusters of A100 of 80 GB; planned for 256 TPU v5p chips (v5p-512).
Time: in the paper 1,720,320 hours of one GPU (table 2); not run here: no such hardware.
Result: published accuracy on MMLU with five examples: 68.9 % (table 3).
Source: Touvron and others 2023, arXiv:2307.09288, section 2.
Data: the paper's text is not public; any large corpus, with `--config.data.tokenizer.name=file` and the path of
LLaMA's SentencePiece model (32,000 ids).
Differs from the paper: nothing that its text states.
"""

import ml_collections

TOPOLOGIES = {"": "v5p:8x8x4"}


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="llama", preset="2-70b", dtype="bfloat16", remat="full"),
            objective=dict(name="causal_lm"),
            data=dict(source="declared:tokens=2T,text=32000", mode="windows", seq_len=4096, overlap=1),
            optimizer=dict(
                name="adamw", learning_rate=1.5e-4, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-5, clip_norm=1.0
            ),
            schedule=dict(name="cosine", warmup="2k steps", final=0.1),
            mesh=dict(data=1, fsdp=-1),
            microbatches=2,
            log=dict(every_steps=10),
            checkpoint=dict(every_steps=500),
            batch_size=1_024,
            steps="2T tokens",
        )
    )
