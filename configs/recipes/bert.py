"""BERT-base and BERT-large (Devlin et al. 2019), and BERT-large in batches of 65,536 with LAMB (You et al. 2020).

Trains a masked language model on 3.3 billion words: a million steps of 256 rows of 512 tokens with Adam, or
(`arch=large,batch=65536`) the first 7,038 steps of the 76-minute run, in rows of 128 tokens.

    ssljax inspect --config configs/recipes/bert.py:arch=large
    ssljax train --config configs/recipes/bert.py --workdir runs/bert-base --config.data.source=text:DIR/*.txt

Hardware: in the papers 16 TPU chips (base), 64 (large), a pod of 1,024 TPU v3 chips (LAMB); planned for 8 H100 (base),
32 H100 (large) and 256 TPU v5e chips (LAMB).
Time: 4 days each in the first paper, 76 minutes with LAMB for both of its stages; not run here: no such hardware.
Result: published average on GLUE: 79.6 (base), 82.1 (large), table 1; F1 on SQuAD 1.1 (dev): 88.5 and 90.9, table 2;
with LAMB 90.58, table 1 of its paper.
Source: Devlin, Chang, Lee, Toutanova 2019, arXiv:1810.04805, appendix A.2; You, Li, Reddi, Hseu, Kumar, Bhojanapalli,
Song, Demmel, Keutzer, Hsieh 2020, arXiv:1904.00962, section 4.1.
Data: English Wikipedia and BooksCorpus, as files of text, with `--config.data.tokenizer.name=file` and the path of
BERT's vocab.txt (30,522 ids). The declared number of tokens, 4.3B, is an estimate.
Differs from the paper: no prediction of the next sentence; new masks in every epoch; rows are windows of the texts end
to end; all steps have 512 tokens (there 128 in the first 90 %). The rate and warm-up of LAMB are those of NVIDIA's
published recipe for the same stage; its second stage (1,563 steps of 32,768 rows of 512 tokens) is another run with
`init_from`.
"""

import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8", "arch=large": "h100:4x8", "arch=large,batch=65536": "v5e:16x16"}


def get_config(arg=""):
    a = arguments(arg, arch=("base", "large"), batch=(256, 65_536))
    lamb = a["batch"] == 65_536
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="bert", preset=a["arch"], dropout=0.1, vocab_size=30_522, max_len=512, dtype="bfloat16"),
            objective=dict(name="mlm", rate=0.15, mask_share=0.8, random_share=0.1),
            data=dict(source="declared:tokens=4300M,text=30522", mode="windows", seq_len=128 if lamb else 512),
            optimizer=dict(name="lamb", learning_rate=6e-3, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-6)
            if lamb
            else dict(name="adamw", learning_rate=1e-4, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-6),
            schedule=dict(name="linear", warmup=2_000 if lamb else 10_000),
            mesh=dict(data=1, fsdp=-1) if lamb else dict(data=-1),
            microbatches=4 if lamb else 1,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=1_000 if lamb else 10_000),
            batch_size=a["batch"],
            steps=7_038 if lamb else 1_000_000,
        )
    )
