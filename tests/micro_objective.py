"""An objective that compiles in a moment, for tests of runs: `{"name": "micro_objective:Micro"}`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.objectives.base import Loss, Variables
from ssljax.objectives.images import ImageObjective

WIDTH = 8


@dataclasses.dataclass(frozen=True)
class Micro(ImageObjective):
    """Classification of noisy pixels by one hidden layer. No gradient is zero but for round-off, as those of biases
    in front of a norm are, of which Adam would make full steps."""

    temperature: float = schema.setting(1.0, gt=0, doc="temperature of the softmax")
    size: float = schema.setting(1.0, gt=0, doc="factor of the initial parameters")
    smoothing: float = schema.setting(0.0, ge=0, lt=1, doc="label smoothing, which 0 switches off")
    keep: float = schema.setting(1.0, gt=0, le=1, doc="share of the pixels that are read")

    @property
    def classes(self) -> int:
        return 10

    def init(self, key: jax.Array, batch: Any) -> Variables:
        pixels = self.seen(batch["image"]).shape[1]
        first, second = jax.random.split(key)
        hidden = self.size * pixels**-0.5 * jax.random.normal(first, (pixels, WIDTH))
        head = self.size * WIDTH**-0.5 * jax.random.normal(second, (WIDTH, self.classes))
        return Variables({"encoder": {"hidden": hidden}, "head": head}, {})

    def seen(self, image: jax.Array) -> jax.Array:
        flat = image.reshape(len(image), -1)
        return flat[:, : int(self.keep * flat.shape[1])]

    def views(self, keys: jax.Array, batch: Any, step: jax.Array) -> dict[str, jax.Array]:
        noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))(keys, batch["image"])
        return {"x": self.seen(self.pixels(batch["image"] + 0.1 * noise)), "label": batch["label"]}

    def encode(self, params: Any, extra: Any, inputs: Any, ctx: Any) -> jax.Array:
        return jnp.tanh(inputs["x"] @ params["encoder"]["hidden"])

    def loss(self, params: Any, extra: Any, outputs: jax.Array, inputs: Any, ctx: Any) -> Loss:
        logits = outputs @ params["head"] / self.temperature
        target = jax.nn.one_hot(inputs["label"], self.classes)
        if self.smoothing:
            target = (1 - self.smoothing) * target + self.smoothing / self.classes
        values = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
        count = jnp.float32(len(values))
        right = jnp.sum(jnp.argmax(logits, -1) == inputs["label"])
        return Loss({"cross_entropy": (1.0, jnp.sum(values), count)}, {"accuracy": (right, count)})

    def features(self, params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        return {"pooled": jnp.tanh(self.seen(self.pixels(batch["image"])) @ params["encoder"]["hidden"])}

    def flops(self, spec: Any) -> float:
        return 2.0 * WIDTH * (64 + self.classes)
