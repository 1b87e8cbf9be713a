"""The keys of a short run of a small language model, without its data."""

LM = {
    "model": {"name": "gpt", "preset": None, "width": 16, "depth": 1, "heads": 2},
    "objective": {"name": "causal_lm"},
    "optimizer": {"name": "adamw"},
    "mesh": {"data": 8},
    "steps": 2,
    "batch_size": 8,
    "log": {"progress": False, "trackers": [], "pictures": False},
}
