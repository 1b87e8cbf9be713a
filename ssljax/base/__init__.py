"""What every room may import: errors for people, the schema of configurations, lazy registries, hashing, locks."""
