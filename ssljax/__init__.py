"""ssljax: every learning principle, every transformer family and every mesh go through one train step."""

__version__ = "0.1.0"
