"""Variational autoencoder: codes are normal variables, whose distribution stays near N(0, 1).

Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Higgins et al. 2017, "beta-VAE".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.objectives.base import Batch, Ctx, Loss, Params, apply, noise_of
from ssljax.objectives.generative.autoencoder import Autoencoder


@dataclasses.dataclass(frozen=True)
class VAE(Autoencoder):
    """The negative evidence lower bound of an image in nats: reconstruction plus `beta` times the KL divergence.

    Normalised pixels have a normal distribution with standard deviation `pixel_std`; the constant
    log(2 pi pixel_std^2) / 2 of each pixel is left out.
    """

    beta: float = schema.setting(1.0, ge=0, doc="weight of the divergence from N(0, 1)")
    pixel_std: float = schema.setting(1.0, gt=0, doc="standard deviation of normalised pixels given the code")

    @property
    def codes(self) -> int:
        return 2 * self.code  # mean and log-variance

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        draw = jax.vmap(lambda key: jax.random.normal(key, (self.code,)))(views.fold_in(keys, 2))
        return {**super().views(keys, batch, step), "draw": draw}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        """Draws a code (section 2.4) and decodes it; held-out losses draw too, since the bound is an expectation."""
        mean, logvar = jnp.split(self.coded(params, inputs["image"], noise_of(ctx), ctx), 2, -1)
        code = mean + jnp.exp(logvar / 2) * inputs["draw"].astype(mean.dtype)
        return {"mean": mean, "logvar": logvar, "pixels": apply(self._decoder(), params["decoder"], code)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        error, weights = self.error(outputs, inputs)
        pixels = inputs["target"][0].size
        reconstruction = pixels * error / (2 * self.pixel_std**2)
        divergence, _ = losses.vae_kl(outputs["mean"], outputs["logvar"], reduce=False)
        weight = jnp.sum(weights)
        return Loss(
            {
                "reconstruction": (1.0, jnp.sum(reconstruction * weights), weight),
                "kl": (self.beta, jnp.sum(divergence * weights), weight),
            }
        )
