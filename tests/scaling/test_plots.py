"""Pictures of fits are written for each kind of law and show what they say."""

import numpy as np
import pytest

from ssljax import scaling
from ssljax.scaling.laws import create
from ssljax.scaling.plots import minima


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


def test_minima_of_parabolas_and_their_intervals():
    """Without noise the minima are those of the curves; with it, nine of ten intervals hold them."""
    budgets, sizes = np.repeat([1e18, 1e19, 1e20], 9), np.tile(np.geomspace(0.2, 5, 9), 3)
    best = 1e8 * (budgets / 1e18) ** 0.5
    loss = 2 + 0.1 * np.log(sizes) ** 2
    held = []
    for seed in range(20):
        noise = 1 + 0.01 * np.random.default_rng(seed).standard_normal(27)
        fit = scaling.fit("isoflop", {"params": best * sizes, "budget": budgets, "loss": loss * noise}, bootstrap=20)
        held += [low <= 1e8 * 10 ** (group / 2) <= high for group, _, low, high, _ in minima(fit)]
    assert 0.8 <= np.mean(held) <= 0.98 and len(held) == 60
    fit = scaling.fit("isoflop", {"params": best * sizes, "budget": budgets, "loss": loss}, bootstrap=20)
    for group, found, _, _, lowest in minima(fit):
        assert found == pytest.approx(1e8 * 10 ** (group / 2), rel=1e-6) and lowest == pytest.approx(2)
