"""Texts of the configs in this folder, small models, and the configs that differ in model and objective alone.

No author (classic-books) and no document (python-docs) is in two splits. "files" are texts of your own,
which `data.source` names; a tenth of them is held out.
"""

import ml_collections

SOURCES = {
    "classic-books": dict(source="jsonl:$SSLJAX_DATA/classic_books/{split}.jsonl.gz", keys=dict(text="text")),
    "python-docs": dict(source="builtin:python-docs"),
    "files": dict(source=None, split="train[:90%]"),
}

DATA = ("python-docs", "classic-books", "files")

# Splits of evaluations.
HELD_OUT = {
    "ag-news": dict(test_split="test"),
    "classic-books": dict(test_split="test"),
    "python-docs": dict(test_split="test"),
    "files": dict(fit_split="train[:90%]", test_split="train[90%:]"),
}

# A BERT of rotary positions and pre-norm blocks.
BERT = dict(
    name="bert",
    preset=None,
    width=96,
    depth=3,
    heads=4,
    norm_position="pre",
    positions="none",
    rope_theta=10_000,
)

# Its smaller form for news, and steps after which masked tokens are predicted better than by their frequencies.
NEWS_BERT = dict(BERT, width=64, depth=2, pool="mean")
NEWS_STEPS = 1_200

# An encoder-decoder of pre-norm blocks with relative positions, which learns faster than learned positions do.
BART = dict(
    name="bart",
    preset=None,
    width=96,
    depth=3,
    heads=4,
    norm_position="pre",
    positions="none",
    position_bias="relative",
)

# An encoder-decoder with relative positions that reads bytes; ids above those of bytes are sentinels.
T5 = dict(name="t5", preset=None, width=96, depth=3, heads=4, head_dim=24, vocab_size=320, activation="geglu_tanh")

NEWS_PIECES = dict(tokenizer=dict(name="bpe", vocab_size=4_000), mode="documents", seq_len=48)

# News of four topics, which serve for the evaluations alone, in a vocabulary of 4,000 pieces of words.
NEWS = dict(
    source="jsonl:$SSLJAX_DATA/ag_news_small/{split}.jsonl",
    keys=dict(text="text", label="label"),
    num_classes=4,
    **NEWS_PIECES,
)
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

BYTES = dict(tokenizer=dict(name="bytes"), mode="windows", seq_len=128)
PIECES = dict(tokenizer=dict(name="bpe", vocab_size=2_000), mode="windows", seq_len=128)

LINEAR = dict(name="linear", warmup="10%")
COSINE = dict(name="cosine", warmup="5%", final=0.1)


def config(data, model, objective, steps, text=BYTES, schedule=LINEAR, evals=None, batch_size=16):
    """The config of a method on one of the texts; news have a vocabulary of their own, and not that of `text`.

    `evals` are the held-out loss unless there are others, on news k-NN and a linear probe of the topics.
    """
    if evals is None:
        loss = dict(**HELD_OUT[data], max_examples=256)
        evals = dict(knn=dict(), linear=dict(l2=L2)) if data == "ag-news" else dict(loss=loss)
    return ml_collections.ConfigDict(
        dict(
            model=model,
            objective=objective,
            data=NEWS if data == "ag-news" else dict(**SOURCES[data], **text),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=schedule,
            evals=evals,
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=batch_size,
            steps=steps,
        )
    )
