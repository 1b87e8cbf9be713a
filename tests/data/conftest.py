"""Helpers of the data tests: configs built as the command line builds them, a cache of their own."""

import pytest

from ssljax.base import schema
from ssljax.data import DataConfig


@pytest.fixture
def config(tmp_path_factory, monkeypatch):
    """Builds a `DataConfig` from keys; its cache starts empty."""
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    return lambda **keys: schema.build(DataConfig, keys, "data")
