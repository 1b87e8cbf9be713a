"""Helpers of the data tests: configs as the command line builds them, with an empty cache."""

import pytest

from ssljax.base import schema
from ssljax.data import DataConfig


@pytest.fixture
def config(tmp_path_factory, monkeypatch):
    """Returns a function that builds a `DataConfig` from keys. The cache starts empty."""
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    return lambda **keys: schema.build(DataConfig, keys, "data")
