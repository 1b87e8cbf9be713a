"""Texts of the configs in this folder, a small BERT and a small BART.

No author (classic-books) and no document (python-docs) is in two splits. "files" are texts of your own,
which `data.source` names; a tenth of them is held out.
"""

SOURCES = {
    "classic-books": dict(source="jsonl:$SSLJAX_DATA/classic_books/{split}.jsonl.gz", keys=dict(text="text")),
    "python-docs": dict(source="builtin:python-docs"),
    "files": dict(source=None, split="train[:90%]"),
}

DATA = ("python-docs", "classic-books", "files")

# Splits of evaluations.
HELD_OUT = {
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
