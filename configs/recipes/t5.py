"""T5-base and T5-11B (Raffel et al. 2020): hidden spans of C4 are written by an encoder-decoder.

Trains the baseline of section 3.1 (base: 524,288 steps of 128 rows of 512 tokens), or the 11B model of section 3.7
(a million steps of 2,048 rows).

    ssljax inspect --config configs/recipes/t5.py:arch=11b
    ssljax train --config configs/recipes/t5.py --workdir runs/t5-base --config.data.source=text:DIR/*.txt

Hardware: in the paper slices of TPU pods, of up to 1,024 TPU v3 chips; planned for 8 H100 (11B: 128 TPU v4 chips,
v4-256).
Time: not published; not run here: no such hardware.
Result: published average on GLUE: 83.28 for the baseline (validation, table 1), 90.3 for 11B (test, table 14).
Source: Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu 2020, arXiv:1910.10683, sections 3.1 and 3.7.
Data: C4, as files of text, with `--config.data.tokenizer.name=file` and the path of T5's SentencePiece model (32,000
ids; the sentinels are ids of the model above them). The declared number of tokens, 156B, is an estimate.
Differs from the paper: 11B is trained on spans only (there also on the supervised tasks). The rate is 0.01
sqrt(k / (k + step)) with k = 10,000 (there 1 / sqrt(max(step, k))), which is lower at first. Rows are windows of 512
tokens before corruption.
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8", "arch=11b": "v4:4x4x8"}


def get_config(arg=""):
    a = arguments(arg, arch=("base", "11b"))
    large = a["arch"] == "11b"
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="t5",
                preset=a["arch"],
                dropout=0.1,
                vocab_size=32_128,
                dtype="bfloat16",
                remat="full" if large else "dots",
            ),
            objective=dict(name="span_corruption", rate=0.15, mean_span=3.0),
            data=dict(source="declared:tokens=156B,text=32000", mode="windows", seq_len=512),
            optimizer=dict(name="adafactor", learning_rate=0.01, relative=True),
            schedule=dict(name="rsqrt", timescale="10k steps"),
            mesh=dict(data=1, fsdp=-1),
            microbatches=4 if large else 1,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=2_048 if large else 128,
            steps=1_000_000 if large else 524_288,
        )
    )
