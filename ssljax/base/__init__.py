"""Foundations for all packages: errors, configuration schema, registries, durations, files, hashing, locks."""
