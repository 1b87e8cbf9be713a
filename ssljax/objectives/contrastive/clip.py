"""CLIP: contrastive learning of images and their captions.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, parallel, views
from ssljax.base import schema
from ssljax.base.exhibits import Exhibit, Grid, Tile
from ssljax.losses.reduction import l2_normalize
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.images import unaugmented, uniformity, view_flops
from ssljax.objectives.pictures import Showing, first_text, in_rows


@dataclasses.dataclass(frozen=True)
class CLIP(ContrastiveObjective):
    """Symmetric cross-entropy over cosine similarities times a learned scale.

    The parameter of the scale is clipped after each update (section 2.5), and with it the averaged parameter.
    """

    inputs: ClassVar[tuple[str, ...]] = ("pairs",)
    model_key: ClassVar[str | None] = None

    term: ClassVar[str] = "clip"  # name of the loss term
    criterion: ClassVar[Callable[..., Any]] = staticmethod(losses.clip)

    max_scale: float | None = schema.setting(
        100.0,
        gt=0,
        doc="upper bound of the learned scale of the similarities, by clipping its parameter (section 2.5: 100); None: "
        "no bound",
    )
    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of the images; none by default"
    )

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        batch = self.prepare(batch)
        params = self.model.init(key, batch["image"], batch["tokens"], batch.get("segment_ids"))["params"]
        return Variables(params, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        text: dict[str, Any] = {k: batch[k] for k in ("tokens", "segment_ids") if k in batch}
        return {"image": self.augment(keys, batch["image"], batch.get("aspect")), **text}

    def held_out(self) -> "CLIP":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        return self._towers(params, inputs, noise_of(ctx), ctx)

    def project(self, params: Params) -> Params:
        if self.max_scale is None:
            return params
        return {**params, "log_scale": jnp.minimum(params["log_scale"], jnp.log(self.max_scale))}

    def learned(self, params: Params) -> dict[str, jax.Array]:
        """The learned numbers of the loss."""
        scale = apply(self.model, params, method="scale")
        return {"logit_scale": scale if self.max_scale is None else clipped(scale, self.max_scale)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        image, text = (l2_normalize(outputs[name]) for name in ("image", "text"))
        learned = self.learned(params)
        matched = self.match(self.criterion, image, text, learned, ctx)
        n = jnp.float32(image.shape[0])
        metrics = {
            **{name: (value, jnp.float32(1)) for name, value in learned.items()},
            "accuracy": matched.accuracy,
            "alignment": (n * losses.alignment(image, text), n),
            "uniformity": (n * uniformity(image), n),
        }
        return Loss({self.term: matched.term}, metrics)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        embedded = self._towers(params, batch, None)
        return {"pooled": embedded["image"], **embedded}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        found = jax.jit(self.features)(params, extra, views.centered(batch))
        image, text = (parallel.fetch(l2_normalize(found[name].astype(jnp.float32))) for name in ("image", "text"))
        captions = [show.decode(first_text(batch, row)).strip() for row in range(len(image))]
        images, tiles = parallel.fetch(batch["image"]), []
        for i, best in enumerate((image @ text.T).argmax(axis=1)[: show.rows]):
            right = captions[best] == captions[i]
            shown = captions[best] if right else f"{captions[best]}\n(true: {captions[i]})"
            tiles.append(Tile(images[i], shown, right))
        caption = f"Held-out images with the most similar of {len(captions)} captions; green: their own."
        return {"captions": Grid("Best captions", caption, in_rows(tiles))}

    def flops(self, spec: Any) -> float:
        return view_flops(self.model, self.augment, spec)

    def _towers(self, params: Params, inputs: Any, noise: Any, ctx: Ctx | None = None) -> dict[str, jax.Array]:
        images, texts = (self.pixels(inputs["image"]),), (inputs["tokens"], inputs.get("segment_ids"))
        shared = {"noise": noise, "ctx": ctx, "part": ""}
        return {
            "image": apply(self.model, params, *images, method="image", **shared),
            "text": apply(self.model, params, *texts, method="text", **shared),
        }


def clipped(scale: jax.Array, bound: float) -> jax.Array:
    """Returns min(scale, bound) with the gradient of `scale` below the bound, at it and, for frozen scales, beyond it.

    A parameter at the bound must be able to leave it: the gradient of a plain minimum would be 0 or halved there.
    """
    return scale * jax.lax.stop_gradient(jnp.minimum(scale, bound) / scale)
