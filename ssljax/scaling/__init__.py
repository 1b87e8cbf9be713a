"""Studies of many runs, and laws that are fitted to their results."""
