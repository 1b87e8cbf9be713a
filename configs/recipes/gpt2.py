"""GPT-2 of 124M parameters (Radford et al. 2019) in the setting of llm.c and nanoGPT: 10 billion tokens of FineWeb.

Trains a decoder with batches of 524,288 tokens, in rows of 1,024.

    ssljax inspect --config configs/recipes/gpt2.py
    ssljax train --config configs/recipes/gpt2.py --workdir runs/gpt2 --config.data.source=parquet:DIR/*.parquet

Hardware: 8 H100 in one machine, as in the source.
Time: 45 minutes for llm.c; not run here: no such hardware.
Result: published loss on held-out FineWeb: 3.28 nats per token.
Source: Karpathy 2024, "Reproducing GPT-2 (124M) in llm.c", github.com/karpathy/llm.c, discussion 481, quoted with time
and loss by github.com/KellerJordan/modded-nanogpt; the model: Radford, Wu, Child, Luan, Amodei, Sutskever 2019.
Data: FineWeb, the sample of 10B tokens, with `--config.data.tokenizer.name=file` and the path of GPT-2's tokenizer
(50,257 ids). Hold out a slice, `--config.data.split="train[:-1%]"`.
Differs from the paper: of the 1,024 tokens of a row 1,023 are predicted. The schedule is that of llm.c, not of GPT-2.
"""

import ml_collections

TOPOLOGIES = {"": "h100:8"}


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt", preset="gpt2", vocab_multiple=128, dtype="bfloat16"),
            objective=dict(name="causal_lm"),
            data=dict(source="declared:tokens=10B,text=50257", mode="windows", seq_len=1024, overlap=1),
            optimizer=dict(name="adamw", learning_rate=6e-4, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="700 steps"),
            mesh=dict(data=-1),
            evals=dict(perplexity=dict(test_split="train[-1%:]", ngrams=False)),
            log=dict(every_steps=50),
            checkpoint=dict(every_steps=2_000),
            batch_size=512,
            steps="10B tokens",
        )
    )
