"""Pictures of fits are written for each kind of law and show what they say."""

import numpy as np
import pytest

from ssljax import scaling
from ssljax.scaling.laws import create


@pytest.mark.parametrize("name", ["chinchilla", "isoflop", "power_offset", "mixture", "coverage"])
def test_each_kind_of_law_is_drawn(name, tmp_path):
    options = {"train": "train_loss"} if name == "power_offset" else {}
    law = create(name, options)
    fit = scaling.fit(name, law.simulate(law.example(), np.random.default_rng(0)), bootstrap=30, **options)
    path = fit.plot(tmp_path / "new" / f"{name}.svg")
    text = path.read_text()
    assert text.startswith("<?xml") and len(text) > 20_000
    assert text.count('<g id="axes_') >= 6  # panels, and a colour bar
    assert not list(path.parent.glob("*.tmp*"))
