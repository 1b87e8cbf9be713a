"""Text data of the configs in this folder; no author (classic-books) and no document (python-docs) is in two splits."""

SOURCES = {
    "classic-books": dict(source="jsonl:$SSLJAX_DATA/classic_books/{split}.jsonl.gz", keys=dict(text="text")),
    "python-docs": dict(source="builtin:python-docs"),
}
