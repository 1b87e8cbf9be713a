"""ELECTRA-small, -base and -large (Clark et al. 2020): the encoder finds tokens that a small generator has replaced.

Trains on English text: the small model in rows of 128 tokens, the others in rows of 512.

    ssljax inspect --config configs/recipes/electra.py:arch=base
    ssljax train --config configs/recipes/electra.py --workdir runs/electra --config.data.source=text:DIR/*.txt

Hardware: in the paper one V100 (small) and 16 TPU v3 (base); planned for 8 H100 (large: 256 TPU v5e chips).
Time: 4 days each for small and base in the paper; not run here: no such hardware.
Result: published average on GLUE (dev): 79.9 (small), 85.1 (base), table 1; 89.5 (large, 1.75M steps), table 2.
Source: Clark, Luong, Le, Manning 2020, arXiv:2003.10555, sections 3.1 to 3.4 and table 6 (appendix A), and
configure_pretraining.py of github.com/google-research/electra.
Data: Wikipedia and BooksCorpus, 3.3 billion tokens (large: 33 billion of the data of XLNet), as files of text, with
`--config.data.tokenizer.name=file` and the path of BERT's tokenizer in lower case (30,522 ids).
Differs from the paper: rows are windows of the texts end to end. The large model is that of 1.75M steps.
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8", "arch=base": "h100:8", "arch=large": "v5e:16x16"}

SIZES = {
    "small": dict(generator=0.25, rate=0.15, learning_rate=5e-4, batch=128, steps=1_000_000, length=128, tokens="3.3B"),
    "base": dict(generator=1 / 3, rate=0.15, learning_rate=2e-4, batch=256, steps=766_000, length=512, tokens="3.3B"),
    "large": dict(generator=0.25, rate=0.25, learning_rate=2e-4, batch=2048, steps=1_750_000, length=512, tokens="33B"),
}


def get_config(arg=""):
    arch = arguments(arg, arch=tuple(SIZES))["arch"]
    a = SIZES[arch]
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="electra", preset=arch, dropout=0.1, extras=("replaced",), dtype="bfloat16"),
            objective=dict(name="electra", rate=a["rate"], generator=a["generator"], weight=50.0),
            data=dict(source=f"declared:tokens={a['tokens']},text=30522", mode="windows", seq_len=a["length"]),
            optimizer=dict(name="adamw", learning_rate=a["learning_rate"], weight_decay=0.01, eps=1e-6, clip_norm=1.0),
            schedule=dict(name="linear", warmup=10_000),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=a["batch"],
            steps=a["steps"],
        )
    )
