"""Every evaluation states the precision of its matrix products on the device."""

import jax
import numpy as np
import pytest
from test_probes import Reader, blobs

from ssljax import evals
from ssljax.evals.base import Probe

PROBES = [name for name in evals.REGISTRY if issubclass(evals.REGISTRY.get(name), Probe)]
OPTIONS = {"linear": [{"l2": (0.1, 0.01)}, {"solver": "sgd", "epochs": 2, "learning_rates": (0.1, 0.01)}]}


@pytest.mark.parametrize(("name", "options"), [(n, o) for n in PROBES for o in OPTIONS.get(n, [{}])])
def test_probes_have_the_highest_precision(name, options, monkeypatch):
    """The backend's default would round similarities and logits to bfloat16 or TF32."""
    found = []
    bind = jax.lax.dot_general_p.bind

    def spy(*arguments, **parameters):
        found.append(parameters["precision"])
        return bind(*arguments, **parameters)

    monkeypatch.setattr(jax.lax.dot_general_p, "bind", spy)
    jax.clear_caches()  # a program that is compiled already is not traced again
    with jax.default_matmul_precision("bfloat16"):
        metrics = evals.REGISTRY.get(name)(**options).run(Reader(train=blobs(60, 0), test=blobs(30, 1)))
    assert np.isfinite(list(metrics.values())).all()
    highest = jax.lax.Precision.HIGHEST
    assert set(found) <= {highest, (highest, highest)}
    assert found or name == "few_shot"  # in NumPy
