"""An objective outside the package, named in a config by its import path."""

import dataclasses
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import run
from ssljax.base import schema
from ssljax.objectives.base import Loss, Variables, noise_of
from ssljax.objectives.images import ImageObjective


@dataclasses.dataclass(frozen=True)
class Brightness(ImageObjective):
    """Predicts the mean brightness of an image."""

    strength: float = schema.setting(1.0, gt=0)

    def init(self, key, batch) -> Variables:
        encoder = self.model.init(key, self.prepare(batch)["image"])["params"]
        return Variables({"encoder": encoder, "head": jnp.zeros(self.model.width)}, {})

    def views(self, keys, batch, step) -> Any:
        return {"image": batch["image"]}

    def encode(self, params, extra, inputs, ctx) -> jax.Array:
        noise = noise_of(ctx)
        pooled = self.model.apply({"params": params["encoder"]}, self.pixels(inputs["image"]), noise=noise).pooled
        return pooled @ params["head"]

    def loss(self, params, extra, outputs, inputs, ctx) -> Loss:
        error = self.strength * (outputs - jnp.mean(inputs["image"], (1, 2, 3))) ** 2
        return Loss({"mse": (1.0, jnp.sum(error), jnp.float32(error.shape[0]))})

    def flops(self, spec) -> float:
        return self.model.flops()


def test_an_objective_from_outside_trains(tmp_path, monkeypatch):
    module = types.ModuleType("their_package")
    module.Brightness = Brightness
    monkeypatch.setitem(sys.modules, "their_package", module)
    config = {
        "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "their_package:Brightness", "strength": 2.0},
        "data": {"source": "builtin:digits"},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "steps": 30,
        "batch_size": 64,
        "microbatches": 2,
        "log": {"every_steps": 10, "progress": False, "trackers": [], "pictures": False},
    }
    run.train(config, tmp_path)
    import json

    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
