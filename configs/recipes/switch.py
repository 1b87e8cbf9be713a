"""Switch Transformer, base, with 128 experts (Fedus et al. 2022): each token of C4 is sent to one expert.

Trains an encoder-decoder with experts in every second block by span corruption, in batches of a million tokens.

    ssljax inspect --config configs/recipes/switch.py
    ssljax train --config configs/recipes/switch.py --workdir runs/switch --config.data.source=text:DIR/*.txt

Hardware: in the paper TPU v3, of which 32 cores for its comparison of speeds; planned for 128 TPU v5p chips (v5p-256).
Time: not published for the whole run; not run here: no such hardware.
Result: published negative log perplexity on C4 after 100,000 steps: -1.553 (table 1, Switch-Base with a
capacity of 1.25).
Source: Fedus, Zoph, Shazeer 2022, arXiv:2101.03961, sections 2 and 3.
Data: C4, as files of text, with `--config.data.tokenizer.name=file` and the path of T5's SentencePiece model (32,000
ids). The declared number of tokens, 156B, is an estimate.
Differs from the paper: dimensions are those of the published weights (feed-forward parts of 3,072 and ReLU). An expert
has a capacity in each row, not in each device's batch. The coefficient of the router's z loss is 0. The settings
of the optimiser are those of `configs/recipes/t5.py`, on which the paper builds.
"""

import ml_collections

TOPOLOGIES = {"": "v5p:4x4x8"}


def get_config(arg=""):
    experts = dict(count=128, top_k=1, normalize=False, every=2, capacity=1.25, balance=0.01, z_loss=0.0)
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="switch", preset="base-128", experts=experts, vocab_size=32_128, dtype="bfloat16"),
            objective=dict(name="span_corruption", rate=0.15, mean_span=3.0),
            data=dict(source="declared:tokens=156B,text=32000", mode="windows", seq_len=512),
            optimizer=dict(name="adafactor", learning_rate=0.01, relative=True),
            schedule=dict(name="rsqrt", timescale="10k steps"),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=2_048,
            steps=500_000,
        )
    )
