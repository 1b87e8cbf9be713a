"""Every test sees eight CPU devices, exact matrix products, and a compilation cache shared by the processes."""

import gc
import logging
import os
import pathlib
import tempfile

from xla_flags import known_flags

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# While a device waits for the others in a collective, it may block a thread of XLA's pool. By default the pool has one
# thread per core. With fewer threads than devices, two independent collectives can wait for each other for ever: this
# was seen with clip on the (2,2,2) mesh, where a rendezvous timed out and the process aborted.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("PJRT_NPROC", "16")
# Most of the suite's time is compilation. It takes a quarter as long without LLVM's optimisations and with the old
# emitters, which XLA dropped after jaxlib 0.10. Worker processes inherit the variable, so flags are tried once.
if "XLA_FLAGS" not in os.environ:
    FASTER_COMPILATION = (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
    os.environ["XLA_FLAGS"] = " ".join(known_flags(FASTER_COMPILATION))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "ssljax_jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import hypothesis
import jax
import pytest
from daily import leave_for_other_days

# Traces make millions of objects that live as long as the process; looking at all of them often takes 5% of the time.
gc.set_threshold(50_000, 20, 50)
jax.config.update("jax_default_matmul_precision", "highest")
hypothesis.settings.register_profile("ssljax", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("ssljax")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real datasets; the test is skipped if it is missing."""
    path = os.environ.get("SSLJAX_DATA")
    if not path or not pathlib.Path(path).is_dir():
        pytest.skip("SSLJAX_DATA (the folder of real datasets) is not set")
    return pathlib.Path(path)


@pytest.fixture(autouse=True)
def _log_levels():
    """Commands that a test calls in this process set levels of loggers, which later tests read."""
    loggers = [logging.getLogger(name) for name in ("", "ssljax")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items):
    leave_for_other_days(items)
