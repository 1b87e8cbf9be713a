"""BART-base and BART-large (Lewis et al. 2020): texts with hidden spans and permuted sentences are written anew.

Trains an encoder-decoder on 160 GB of text: 500,000 steps of 8,000 rows.

    ssljax inspect --config configs/recipes/bart.py:arch=large
    ssljax train --config configs/recipes/bart.py --workdir runs/bart --config.data.source=text:DIR/*.txt

Hardware: not in the paper; planned for 64 H100 (large: 128).
Time: not in the paper; not run here: no such hardware.
Result: published F1 on SQuAD 1.1 (dev) 94.6 and accuracy on MNLI 89.9 % (large), table 2.
Source: Lewis, Liu, Goyal, Ghazvininejad, Mohamed, Levy, Stoyanov, Zettlemoyer 2020, arXiv:1910.13461, sections 2 and 5.
Data: as RoBERTa: BooksCorpus, Wikipedia, CC-News, OpenWebText, Stories, as files of text, with
`--config.data.tokenizer.name=file` and the path of BART's tokenizer (50,265 ids). The declared number of tokens, 36B,
is an estimate.
Differs from the paper: batches have 8,192 rows of 512 tokens (there 8,000, of a length that is not given); the rates
are those of RoBERTa, since the paper gives none; dropout is 0.1 throughout (there 0 in the last tenth).
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8x8", "arch=large": "h100:16x8"}

RATES = {"base": 6e-4, "large": 4e-4}


def get_config(arg=""):
    arch = arguments(arg, arch=tuple(RATES))["arch"]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="bart", preset=arch, dropout=0.1, dtype="bfloat16"),
            objective=dict(name="text_infilling", corruptions=("infilling", "permutation"), rate=0.3, mean_span=3.0),
            data=dict(source="declared:tokens=36B,text=50265", mode="windows", seq_len=512),
            optimizer=dict(name="adamw", learning_rate=RATES[arch], weight_decay=0.01, b2=0.98, eps=1e-6),
            schedule=dict(name="linear", warmup=30_000),
            mesh=dict(data=1, fsdp=-1),
            microbatches=2,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=8_192,
            steps=500_000,
        )
    )
