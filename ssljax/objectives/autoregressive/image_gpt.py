"""Image GPT: a language model of pixels in raster order, whose tokens are clusters of colours.

Chen, Radford, Child, Wu, Jun, Luan, Sutskever 2020, "Generative Pretraining from Pixels".
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel, views
from ssljax.base import k_means as clustering
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Grid, Tile
from ssljax.layers.masks import Causal, Full, Mask
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, noise_of, still, views_of
from ssljax.objectives.images import unaugmented, view_shape
from ssljax.objectives.pictures import Showing
from ssljax.objectives.tokens import TokenObjective, check_two_sided, token_loss
from ssljax.views.keys import uniforms


@dataclasses.dataclass(frozen=True)
class ImageGPT(TokenObjective):
    """Mean negative log-likelihood per predicted pixel, in nats (eq. 1 to 3).

    The colours are clustered once, by k-means of pixels of the first batch; until then, in the first step, colours are
    random.
    The id after those of the colours is the first token of a causal model, and the mask of a masked one.
    """

    data_kind: ClassVar[str | None] = "images"

    form: Literal["causal", "masked"] = schema.setting(
        "causal", doc="what is predicted; 'causal': each pixel from those before it; 'masked': hidden pixels (BERT)"
    )
    clusters: int = schema.setting(512, gt=1, doc="number of colours (k)")
    sample: int = schema.setting(64, gt=0, doc="pixels of each image of the first batch that are clustered")
    iterations: int = schema.setting(20, gt=0, doc="updates of the centroids of the clustering")
    rate: float = schema.setting(0.15, gt=0, lt=1, doc="probability that a pixel is hidden; read if `form` is 'masked'")
    layer: int | None = schema.setting(
        None, ge=0, doc="number of blocks below the features of evaluations; None: half of all blocks"
    )
    augment: Any = schema.setting(
        {"name": "single"},
        registry=views.REGISTRY.only("single"),
        doc="augmentation and size of the image that is read; none by default",
    )

    def model_spec(self, spec: Any) -> Any:
        if "image" not in spec.elements:
            raise UserError("objective.name: image_gpt needs images, but the data have none")
        height, width, _ = view_shape(self.augment, spec)
        tokens = {"tokens": {"shape": [height * width], "dtype": "int32"}}
        return dataclasses.replace(spec, elements=tokens, vocab_size=self.clusters + 1, max_len=height * width)

    def check(self) -> None:
        super().check()
        c = self.model.config
        if not hasattr(c, "depth"):
            raise UserError("model.name: image_gpt needs a model with blocks over tokens, of which features are states")
        if self.form == "masked":
            check_two_sided(self.model)
        if c.vocab_size <= self.clusters:
            raise UserError(
                f"model.vocab_size: got {c.vocab_size}, must be at least {self.clusters + 1}: objective.clusters and a "
                "first token"
            )
        size = getattr(c, "readout_size", None)
        if size is not None and size < self.clusters:
            raise UserError(
                f"model.readout_size: got {size}, must be at least objective.clusters, which is {self.clusters}"
            )
        if self.layer is not None and self.layer > c.depth:
            raise UserError(f"objective.layer: got {self.layer}, must be at most the {c.depth} blocks of the model")

    def mask(self, inputs: Any) -> Mask:
        return Causal() if self.form == "causal" else Full()

    def prepare(self, batch: Batch) -> Batch:
        return {**batch, "image": views.to_float(batch["image"])}

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        model_key, color_key, fit_key = jax.random.split(key, 3)
        tokens = jnp.zeros((1, self._pixels), jnp.int32)
        encoder = self.model.init(model_key, tokens, mask=self.mask({}), method="init_all")["params"]
        extra = {
            "key": jax.random.key_data(fit_key),
            "palette": jax.random.uniform(color_key, (self.clusters, batch["image"].shape[-1])),
            "frequency": jnp.full(self.clusters, 1 / self.clusters, jnp.float32),
            "fitted": jnp.zeros((), bool),
        }
        return Variables({"encoder": encoder}, extra)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        image = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        pixels = image.reshape(len(image), self._pixels, -1)
        equal = jnp.zeros(pixels.shape[:2], bool)
        places = views.random_subset(views.fold_in(keys, 1), equal, min(self.sample, self._pixels))
        inputs = {"image": image, "sample": jnp.take_along_axis(pixels, places[..., None], 1)}
        if self.form == "masked":
            inputs["hidden"] = uniforms(views.fold_in(keys, 2), self._pixels) < self.rate
        return inputs

    def held_out(self) -> "ImageGPT":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        colors = self.colors(extra, inputs["image"])
        read = {"tokens": self.read(colors, inputs.get("hidden"))}
        return {"colors": colors, "hidden": self.hidden(params, read, noise_of(ctx), ctx).tokens}  # [B, T], [B, T, D]

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        colors = outputs["colors"]
        weights = inputs.get("hidden", jnp.ones(colors.shape)).reshape(-1).astype(jnp.float32)
        loss = token_loss(self.scores(params, outputs["hidden"], colors), weights)
        unigram = -jnp.log(extra["frequency"])[colors.reshape(-1)]
        metrics = {**loss.metrics, "nll_unigram": (jnp.sum(unigram * weights), jnp.sum(weights))}
        return loss._replace(metrics=metrics, rows=inputs["sample"])

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        # A skipped step (gradients that are not finite) leaves `extra` as it was: the next one clusters.
        return jax.lax.cond(extra["fitted"], lambda: extra, lambda: self._fitted(extra, rows))

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if self.form == "masked":
            raise NotImplementedError("image_gpt with objective.form='masked' has no likelihoods")
        colors = self.colors(extra, self._whole(batch))
        hidden = self.hidden(params, {"tokens": self.read(colors)}, None).tokens
        nll = self.scores(params, hidden, colors).nll.reshape(colors.shape)
        return -jnp.sum(nll, 1), jnp.full(len(nll), self._pixels, jnp.float32)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        """Mean over positions of the normalised states below a middle block (section 2.4), and the states."""
        tokens = self.read(self.colors(extra, self._whole(batch)))
        states = self.model.apply({"params": params["encoder"]}, tokens, mask=self.mask({}), states=True).states
        number = (len(states) - 1) // 2 if self.layer is None else self.layer
        state = jax.nn.standardize(states[number].astype(jnp.float32), axis=-1, epsilon=1e-5)
        return {"pooled": jnp.mean(state, 1), "tokens": state}

    def colors(self, extra: Any, images: jax.Array) -> jax.Array:
        """Returns the nearest colours of the pixels of images [B, h, w, C] in raster order, int32 [B, h w]."""
        b, *_, channels = images.shape
        return clustering.assign(images.reshape(-1, channels), extra["palette"]).reshape(b, -1)

    def read(self, colors: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """Returns the tokens that the model reads, int32 [B, T].

        Args:
            colors: int32 [B, T].
            hidden: bool [B, T], the pixels of a masked model that are replaced by the mask; None: none.
        """
        if self.form == "causal":
            return jnp.pad(colors, ((0, 0), (1, 0)), constant_values=self.clusters)[:, :-1]
        return colors if hidden is None else jnp.where(hidden, self.clusters, colors)

    def restored(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """Returns hidden, bool [B, T], true and most probable colours, int32 [B, T], of the masked objective."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        outputs = self.encode(params, extra, inputs, still(key, batch))
        logits = self.model.apply({"params": params["encoder"]}, outputs["hidden"], method="logits")
        return inputs["hidden"], outputs["colors"], jnp.argmax(logits[..., : self.clusters], -1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        batch = views.centered(batch)
        palette = parallel.fetch(extra["palette"])
        if self.form == "masked":
            made = jax.jit(self.held_out().restored)(params, extra, batch, show.key)
            hidden, true, guess = (x[: show.rows] for x in parallel.fetch(made))
            caption = f"Held-out images with {self.rate:.0%} of their pixels hidden, and the most probable colours."
            columns = (true, np.where(hidden, -1, true), np.where(hidden, guess, true))
            return {"samples": self._grid(columns, palette, caption)}
        if show.generate is None:
            return {}
        found = jax.jit(lambda extra, batch: self.colors(extra, self._whole(batch)))(extra, batch)
        true = parallel.fetch(found)[: show.rows]
        start, cut = np.full((len(true), 1), self.clusters), self._pixels // 2
        # One position is left for the first token, so the last pixel stays as it is.
        new = show.generate(list(np.concatenate([start, true[:, :cut]], 1)), self._pixels - cut - 1, ())
        whole = np.concatenate([true[:, :cut], np.stack(new), true[:, -1:]], 1)
        half = np.where(np.arange(self._pixels) < cut, true, -1)
        caption = "Held-out images in the colours of the model, their upper halves, and what the model adds to these."
        return {"samples": self._grid((true, half, whole), palette, caption)}

    def flops(self, spec: Any) -> float:
        pixels = math.prod(view_shape(self.augment, spec)[:2])
        forward = self.model.flops(tokens=pixels, causal=self.form == "causal", predicted=pixels)
        return forward + 2.0 * pixels * self.clusters * view_shape(self.augment, spec)[-1] / 3  # no backward pass

    @property
    def _pixels(self) -> int:
        return math.prod(view_shape(self.augment, self.spec)[:2])

    def _whole(self, batch: Batch) -> jax.Array:
        """Returns the images of a prepared batch as evaluations see them, [B, h, w, C]."""
        return views.resize(views.centered(batch)["image"], view_shape(self.augment, self.spec)[:2])

    def _fitted(self, extra: Any, rows: jax.Array) -> Any:
        """Returns the extra state with clusters of pixels [B, S, C], and the shares of the pixels in them."""
        points = rows.reshape(-1, rows.shape[-1])
        if len(points) < self.clusters:
            raise UserError(
                f"objective.clusters: got {self.clusters}, but the first batch gives {len(points)} pixels, fewer than "
                "colours; enlarge objective.sample or batch_size"
            )
        key = jax.random.wrap_key_data(extra["key"])
        palette, colors = clustering.k_means(key, points, self.clusters, self.iterations)
        counts = jnp.zeros(self.clusters).at[colors].add(1.0) + 1  # no colour has probability 0
        frequency = counts / jnp.sum(counts)
        return {**extra, "palette": palette, "frequency": frequency, "fitted": jnp.ones((), bool)}

    def _grid(self, columns: Any, palette: np.ndarray, caption: str) -> Grid:
        """Returns the picture of colours [B, T], in which -1 is grey, in three columns."""
        height, width, channels = view_shape(self.augment, self.spec)
        ids = np.stack(columns, 1).clip(-1, self.clusters - 1)  # [B, 3, T]
        known = np.concatenate([np.clip(palette, 0, 1), np.full((1, channels), 0.5)])
        images = known[ids].reshape(*ids.shape[:2], height, width, channels)
        rows = [[Tile(image) for image in row] for row in images]
        return Grid("Completions", caption, rows, ("original", "seen", "completed"))
