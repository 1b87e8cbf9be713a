"""GPT-3 of 6.7 and 13 billion parameters (Brown et al. 2020): 300 billion tokens in batches of 2 million.

Trains a decoder whose layers attend to all tokens and to a band of tokens in turn, in rows of 2,048.

    ssljax inspect --config configs/recipes/gpt3.py:arch=13b
    ssljax train --config configs/recipes/gpt3.py --workdir runs/gpt3-7b --config.data.source=parquet:DIR/*.parquet

Hardware: in the paper V100 in a cluster; planned for 64 H100 (6.7B) and 128 TPU v5p chips (13B).
Time: not published; not run here: no such hardware.
Result: published zero-shot accuracy on LAMBADA: 70.3 % (6.7B), 72.5 % (13B), table H.1.
Source: Brown and others 2020, arXiv:2005.14165, table 2.1 and appendix B.
Data: filtered Common Crawl, WebText2, books, Wikipedia; any large corpus, with `--config.data.tokenizer.name=file` and
the path of GPT-2's tokenizer (50,257 ids).
Differs from the paper: the batch has 2M tokens (1,024 rows) from the start (there it grows from 32k over the first
billions of tokens). The cosine falls to 10 % over the whole run (there over 260B tokens). The width of the band, 256,
is not in the paper. Texts are one mixture.
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8x8", "arch=13b": "v5p:4x4x8"}

RATES = {"6.7b": 1.2e-4, "13b": 1e-4}


def get_config(arg=""):
    a = arguments(arg, arch=tuple(RATES))
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gpt3", preset=a["arch"], vocab_multiple=128, dtype="bfloat16", remat="full"),
            objective=dict(name="causal_lm"),
            data=dict(source="declared:tokens=300B,text=50257", mode="windows", seq_len=2048, overlap=1),
            optimizer=dict(
                name="adamw",
                learning_rate=RATES[a["arch"]],
                weight_decay=0.1,
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                clip_norm=1.0,
            ),
            schedule=dict(name="cosine", warmup="375M tokens", final=0.1),
            mesh=dict(data=1, fsdp=-1),
            microbatches=2,
            log=dict(every_steps=20),
            checkpoint=dict(every_steps=1_000),
            batch_size=1_024,
            steps="300B tokens",
        )
    )
