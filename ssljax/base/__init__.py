"""Foundations that every room may import: user errors, configuration schema, lazy registries, hashing, locks."""
