"""Pictures of fits are written for each kind of law and show what they say."""

import numpy as np
import pytest

from ssljax import scaling
from ssljax.scaling.laws import create


def fitted(name):
    """A law fitted to its typical study."""
    options = {"train": "train_loss"} if name == "power_offset" else {}
    law = create(name, options)
    return scaling.fit(name, law.simulate(law.example(), np.random.default_rng(0)), bootstrap=30, **options)


@pytest.mark.parametrize("name", ["chinchilla", "isoflop", "power_offset", "mixture", "coverage"])
def test_each_kind_of_law_is_drawn(name, tmp_path):
    path = fitted(name).plot(tmp_path / "new" / f"{name}.svg")
    text = path.read_text()
    assert text.startswith("<?xml") and len(text) > 20_000
    assert text.count('<g id="axes_') >= 6  # panels, and a colour bar
    assert not list(path.parent.glob("*.tmp*"))
