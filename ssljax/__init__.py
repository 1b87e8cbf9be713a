"""ssljax: every learning principle, every transformer family and every mesh go through one train step.

From Python: `ssljax.train(config, workdir)`, and the other names of `_FUNCTIONS`, which are imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = {
    "evaluate": "ssljax.runs",
    "embed": "ssljax.runs",
    "write_embedded": "ssljax.runs",
    "generate": "ssljax.runs",
    "fill_mask": "ssljax.runs",
    "inspect": "ssljax.runs",
    "load": "ssljax.runs",
    "compare": "ssljax.report",
}
_PACKAGES = (
    *("config", "data", "evals", "interop", "layers", "losses", "models", "objectives", "parallel"),
    *("reference", "report", "run", "runs", "scaling", "train", "views"),
)
__all__ = ["__version__", *_FUNCTIONS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"ssljax.{name}")
    raise AttributeError(f"module 'ssljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
