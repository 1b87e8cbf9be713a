"""SpanBERT (Joshi et al. 2020): BERT whose masks hide spans of words, also predicted from the tokens around them.

Trains BERT-large on single segments of 512 tokens for 2.4 million steps.

    ssljax inspect --config configs/recipes/span_bert.py
    ssljax train --config configs/recipes/span_bert.py --workdir runs/span_bert --config.data.source=text:DIR/*.txt

Hardware: in the paper 32 V100; planned for 32 H100.
Time: 15 days in the paper; not run here: no such hardware.
Result: published F1 on SQuAD 1.1 94.6 and on SQuAD 2.0 88.7 (test, table 1).
Source: Joshi, Chen, Liu, Weld, Zettlemoyer, Levy 2020, arXiv:1907.10529, sections 3 and 4.2.
Data: Wikipedia and BooksCorpus as files of text, with `--config.data.tokenizer.name=file` and the path of BERT's
tokenizer (28,996 ids). The declared number of tokens, 3.3B, is that of BERT's text.
Differs from the paper: masks are new in every epoch (there ten for each row); rows are windows of the texts end to end.
"""

import ml_collections

TOPOLOGIES = {"": "h100:4x8"}


def get_config():
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="bert", preset="large", dropout=0.1, dtype="bfloat16"),
            objective=dict(name="mlm", rate=0.15, units="word", spans=(0.2, 10), boundary=True),
            data=dict(source="declared:tokens=3300M,text=28996", mode="windows", seq_len=512),
            optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.1, eps=1e-8, clip_norm=1.0),
            schedule=dict(name="linear", warmup=10_000),
            mesh=dict(data=1, fsdp=-1),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=256,
            steps=2_400_000,
        )
    )
