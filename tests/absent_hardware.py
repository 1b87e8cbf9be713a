"""Marks of tests that need a compiler of absent hardware; they skip by its name."""

import importlib.util

import pytest


def _is_installed(module):
    parent = module.rpartition(".")[0]
    return (not parent or _is_installed(parent)) and importlib.util.find_spec(module) is not None


def _needs(*modules):
    missing = [module for module in modules if not _is_installed(module)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


needs_tpu = _needs("libtpu")
needs_gpu = _needs("jax_plugins.xla_cuda13", "nvidia.cudnn")
