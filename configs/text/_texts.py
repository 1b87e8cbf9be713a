"""The text data of these configs. Held-out text decides; authors (books) or documents (docs) never cross splits."""

SOURCES = {
    "classic-books": dict(source="jsonl:$SSLJAX_DATA/classic_books/{split}.jsonl.gz", keys=dict(text="text")),
    "python-docs": dict(source="builtin:python-docs"),
}
