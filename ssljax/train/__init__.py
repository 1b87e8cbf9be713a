"""Training: the program, the step, the state, optimisers, schedules, the loop, checkpoints.

The package can be called: `ssljax.train(config, workdir)` is `ssljax.run.train`.
"""

import importlib
import sys
import types
from typing import Any


class _Train(types.ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("ssljax.run").train(*arguments, **options)


sys.modules[__name__].__class__ = _Train
