"""Colourisation: which colours does a grey image have?

Zhang, Isola, Efros 2016, "Colorful Image Colorization".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Grid, Tile
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.images import ImageObjective, unaugmented, view_flops, view_shape
from ssljax.objectives.masked.patches import check_patches
from ssljax.objectives.pictures import Showing

RANGE = 110.0  # of a and b in the gamut of sRGB


@dataclasses.dataclass(frozen=True)
class Colorization(ImageObjective):
    """Cross-entropy of the colour bins of the cells of a patch (eq. 2), in which rare colours have more weight (eq. 4).

    The encoder sees the lightness L of CIELAB, scaled to [0, 1], in all channels; so evaluations see grey images too.
    """

    form: Literal["classes", "regression"] = schema.setting(
        "classes",
        doc="what is predicted; 'regression': a and b with the squared error (eq. 1), which gives dull colours",
    )
    cell: int = schema.setting(4, gt=0, doc="side in pixels of the cells whose mean colour is predicted")
    bins: int = schema.setting(313, gt=4, doc="number of colour bins (Q)")
    mix: float = schema.setting(
        0.5, gt=0, le=1, doc="share of the uniform distribution in the weights of colours (lambda); 1: equal weights"
    )
    temperature: float = schema.setting(
        0.38, gt=0, doc="temperature of the annealed mean, by which a distribution becomes a colour (T)"
    )
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.6, 1.0), "augment": {"flip": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of the coloured image, by default crops and flips",
    )

    def check(self) -> None:
        super().check()
        check_patches(self)
        channels = view_shape(self.augment, self.spec)[-1]
        if channels != 3:
            raise UserError(f"objective.name: colorization needs images of 3 channels, but the data have {channels}")
        if self.model.patch_size % self.cell:
            raise UserError(
                f"objective.cell: got {self.cell}, must divide model.patch_size, which is {self.model.patch_size}"
            )

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        encoder = self.model.init(encoder_key, self.prepare(batch)["image"][:1])["params"]
        head = self._head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        extra = {"frequency": jnp.full(self.bins, 1 / self.bins, jnp.float32)} if self.form == "classes" else {}
        return Variables({"encoder": encoder, "head": head}, extra)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return {"image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))}

    def held_out(self) -> "Colorization":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        images = self.pixels(lightness(inputs["image"]))
        tokens = apply(self.model, params["encoder"], images, noise=noise_of(ctx), ctx=ctx).tokens
        outputs = apply(self._head(), params["head"], tokens)
        return outputs.reshape(*outputs.shape[:2], -1, self._outputs)  # [B, N, cells of a patch, Q or 2]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        ab = self.colours(inputs["image"])
        count = jnp.float32(ab.size // 2)
        made = self.decoded(outputs)
        chroma = [jnp.sum(jnp.linalg.norm(x, axis=-1)) for x in (made, ab)]
        metrics = {
            "color_error": (jnp.sum(jnp.linalg.norm(made - ab, axis=-1)), count),
            "chroma": (chroma[0], chroma[1]),
        }
        if self.form == "regression":
            values, weights = losses.mse(outputs.reshape(-1, 2), ab.reshape(-1, 2) / RANGE, reduce=False)
            return Loss({"mse": (1.0, jnp.sum(values * weights), count)}, metrics)
        bins = views.ab_bins(self.bins)
        index, weights = views.nearest_bins(ab, bins)
        found = jnp.take_along_axis(jax.nn.log_softmax(outputs.astype(jnp.float32), -1), index, -1)
        rarity = views.rebalancing(extra["frequency"], bins, self.mix)[index[..., 0]]
        value = -jnp.sum(rarity * jnp.sum(weights * found, -1))
        counts = jnp.zeros(self.bins).at[index[..., 0].reshape(-1)].add(1.0)
        return Loss({"cross_entropy": (1.0, value, count)}, metrics, sums={"counts": counts})

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        if self.form == "regression":
            return extra
        share = sums["counts"] / jnp.sum(sums["counts"])
        return {"frequency": extra["frequency"] + (share - extra["frequency"]) / (step + 1)}  # mean over all steps

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        return super().features(params, extra, {**batch, "image": lightness(batch["image"])})

    def colours(self, images: jax.Array) -> jax.Array:
        """Mean a and b of each cell of RGB images in [0, 1], [B, N, cells of a patch, 2]."""
        ab = views.rgb_to_lab(images)[..., 1:]
        b, height, width, _ = ab.shape
        small = ab.reshape(b, height // self.cell, self.cell, width // self.cell, self.cell, 2).mean((2, 4))
        cut = views.patchify(small, self.model.patch_size // self.cell)
        return cut.reshape(*cut.shape[:2], -1, 2)

    def decoded(self, outputs: jax.Array) -> jax.Array:
        """Predicted a and b of each cell, [B, N, cells of a patch, 2]."""
        if self.form == "regression":
            return RANGE * outputs.astype(jnp.float32)
        return views.annealed_mean(outputs, views.ab_bins(self.bins), self.temperature)

    def coloured(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """Returns (images, grey images, coloured images), each [B, H, W, 3] in [0, 1]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        images = inputs["image"]
        ctx = Ctx(key, jnp.int32(0), jnp.arange(len(images)), train=False)
        made = self.decoded(self.encode(params, extra, inputs, ctx))
        height, width = (n // self.cell for n in images.shape[1:3])
        small = views.unpatchify(made.reshape(*made.shape[:2], -1), (height, width, 2))
        wide = jnp.repeat(jnp.repeat(small, self.cell, 1), self.cell, 2)
        light = views.rgb_to_lab(images)[..., :1]
        whole = views.lab_to_rgb(jnp.concatenate([light, wide], -1))
        return images, views.lab_to_rgb(jnp.concatenate([light, jnp.zeros_like(wide)], -1)), whole

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        made = jax.jit(self.held_out().coloured)(params, extra, views.centered(batch), show.key)
        rows = zip(*(parallel.fetch(images)[: show.rows] for images in made))
        caption = "Held-out images (central squares), their lightness, and the colours that are predicted from it."
        grid = Grid(
            "Colours", caption, [[Tile(image) for image in row] for row in rows], ("original", "grey", "coloured")
        )
        return {"colours": grid}

    def flops(self, spec: Any) -> float:
        rows, columns = self.model.grid((1, *view_shape(self.augment, spec)))
        head = 2.0 * self.model.width * self._head().features
        return view_flops(self.model, self.augment, spec) + rows * columns * head

    @property
    def _outputs(self) -> int:
        return self.bins if self.form == "classes" else 2

    def _head(self) -> Linear:
        cells = (self.model.patch_size // self.cell) ** 2
        return Linear(cells * self._outputs, input_ratio=output_ratio(self.model))


def lightness(images: jax.Array) -> jax.Array:
    """Returns L / 100 of RGB images [..., 3] in [0, 1], in all three channels."""
    light = views.rgb_to_lab(images)[..., :1] / 100
    return jnp.broadcast_to(light, images.shape)
