"""SimMIM and MaskFeat: an encoder that sees mask tokens in place of patches predicts pixels, or gradients.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2022, "SimMIM: A Simple Framework for Masked Image Modeling"; Wei, Fan, Xie, Wu,
Yuille, Feichtenhofer 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, still, views_of
from ssljax.objectives.images import unaugmented
from ssljax.objectives.masked.adversary import Adversary, hardest, order_loss
from ssljax.objectives.masked.patches import (
    PatchObjective,
    check_masks,
    check_token,
    masked_images,
    restored_images,
    run_share,
)
from ssljax.objectives.pictures import Showing
from ssljax.views.keys import uniforms


@dataclasses.dataclass(frozen=True)
class SimMIM(PatchObjective):
    """The error of a linear head at masked patches. The model needs `mask_token=True`."""

    mask_ratio: float = schema.setting(0.6, gt=0, lt=1, doc="share of patches that are masked")
    masking: Any = schema.setting(
        {"name": "random"}, registry=views.MASKINGS, doc="which patches are masked, and which of the others are seen"
    )
    target: Literal["pixels", "hog"] = schema.setting(
        "pixels",
        doc="what the head predicts; 'hog': histograms of oriented gradients of cells of half a patch (MaskFeat)",
    )
    error: Literal["l1", "l2"] = schema.setting("l1", doc="error of a prediction; MaskFeat has l2")
    adversary: Adversary | None = schema.setting(
        None, doc="a learned masker, which hides more and more of the patches that are hard to predict; None: none"
    )
    bins: int = schema.setting(9, gt=0, doc="orientations of a histogram; read if `target` is 'hog'")
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.67, 1.0), "augment": {"flip": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="augmentation before the patches are cut, by default crops and flips",
    )

    def check(self) -> None:
        super().check()
        check_token(self)
        check_masks(self)
        if self.target == "hog" and self.model.patch_size % 2:
            raise UserError(
                f"model.patch_size: got {self.model.patch_size}, must be even, since objective.target is 'hog': a "
                "histogram covers half a patch"
            )
        if self.adversary and getattr(self.masking, "near", None) is not None:
            raise UserError("objective.masking.near: an adversary needs all patches that are not hidden, must be none")

    @property
    def total_dependent(self) -> bool:
        adversary = self.adversary
        return bool(self.masking.grows or (adversary and (adversary.grows or adversary.teacher.schedule != "constant")))

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        images = self.prepare(batch)["image"]
        encoder = self.model.init(encoder_key, images, patch_mask=jnp.zeros((len(images), self._patches(images)), bool))
        head = self._head(images.shape[-1]).init(head_key, jnp.zeros((1, self.model.width)))["params"]
        params = {"encoder": encoder["params"], "head": head}
        if self.adversary is None:
            return Variables(params, {})
        key = jax.random.fold_in(head_key, 1)
        params["difficulty"] = self._difficulty().init(key, jnp.zeros((1, self.model.width)))["params"]
        return Variables(params, {"teacher": jax.tree.map(jnp.copy, self._judge(params))})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        images = self.augmented(views.fold_in(keys, 0), batch)
        grid = self.model.grid(images.shape)
        progress = run_share(self, step)
        made = self.masking(views.fold_in(keys, 1), grid, self.mask_ratio, progress)
        inputs = {"image": images, "mask": made.target, "hidden": ~made.visible}
        if self.adversary:
            share = self.adversary.share * (progress if self.adversary.grows else 1.0)
            share = jnp.broadcast_to(jnp.asarray(share, jnp.float32), len(images))
            inputs |= {"hard_share": share, "u": uniforms(views.fold_in(keys, 2), made.target.shape[1])}
        return inputs

    def held_out(self) -> "SimMIM":
        adversary = self.adversary and dataclasses.replace(self.adversary, grows=False)
        last = {"masking": self.masking.last(), "adversary": adversary}
        return dataclasses.replace(self, augment=unaugmented(self.augment), **last)

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        """Returns predictions [B, N, T] of all patches; of an adversary also its mask and difficulties [B, N]."""
        images, mask, hidden = self.pixels(inputs["image"]), inputs["mask"], inputs["hidden"]
        if self.adversary:
            whole = apply(self.model, extra["teacher"]["encoder"], images).tokens
            expected = apply(self._difficulty(), extra["teacher"]["difficulty"], whole)[..., 0]
            mask = hidden = hardest(mask, jax.lax.stop_gradient(expected), inputs["hard_share"], inputs["u"])
        options: dict[str, Any] = {"patch_mask": hidden, "noise": noise_of(ctx), "ctx": ctx}
        tokens = apply(self.model, params["encoder"], images, **options).tokens
        out = {"predicted": apply(self._head(images.shape[-1]), params["head"], tokens)}
        if self.adversary:
            out["mask"] = mask.astype(jnp.float32)  # outputs are differentiated beside coupled objectives
            out["difficulty"] = apply(self._difficulty(), params["difficulty"], tokens)[..., 0]
        return out

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        difference = outputs["predicted"] - self._targets(inputs["image"])
        error = jnp.mean(jnp.abs(difference) if self.error == "l1" else jnp.square(difference), -1)  # [B, N]
        mask = self._mask(outputs, inputs)
        # An adversary masks as many patches as the strategy: weights depend on the inputs alone.
        number = jnp.sum(inputs["mask"], 1).astype(jnp.float32)
        loss = Loss({self.error: (1.0, jnp.sum(error * mask), jnp.sum(number))})
        if self.adversary is None:
            return loss
        order = order_loss(outputs["difficulty"], error, mask > 0)
        count = jnp.sum((number > 1).astype(jnp.float32))
        terms = loss.terms | {"order": (self.adversary.weight, jnp.sum(order.losses), count)}
        return Loss(terms, {"accuracy/order": (jnp.sum(order.right), count)})

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        if self.adversary is None:
            return extra
        return {"teacher": self.adversary.teacher.follow(extra["teacher"], self._judge(params), step, self.steps)}

    def restored(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """Returns (images, masked images, reconstructed images), each [B, H, W, C] in [0, 1].

        Gradients are not made into images: without pixels as targets there is no reconstruction.
        """
        inputs = views_of(self, key, batch, jnp.int32(0))
        images, original = inputs["image"], self.visible(inputs["image"])
        made = self.encode(params, extra, inputs, still(key, batch))
        mask = self._mask(made, inputs)
        unseen = mask if self.adversary else inputs["hidden"]
        hidden = masked_images(original, unseen, self.model.patch_size)
        if self.target == "hog":
            return original, hidden
        return original, hidden, restored_images(self, images, mask, made["predicted"], normalized=False)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        made = jax.jit(self.held_out().restored)(params, extra, views.centered(batch), show.key)
        ending = "restored" if len(made) > 2 else "whose gradients are predicted"
        caption = f"with {self.mask_ratio:.0%} of their patches masked, {ending}."
        return {"reconstruction" if len(made) > 2 else "masks": self.columns(made, show.rows, caption)}

    def flops(self, spec: Any) -> float:
        shape = (1, *self.shape)
        rows, columns = self.model.grid(shape)
        head = 2.0 * self.model.width * self._size(shape[-1]) * rows * columns
        teacher = self.encoder_flops() / 3 if self.adversary else 0.0  # without a backward pass
        return self.encoder_flops() + head + teacher

    def _targets(self, images: jax.Array) -> jax.Array:
        """Targets [B, N, T] of images in [0, 1]."""
        if self.target == "pixels":
            return views.patchify(self.pixels(images), self.model.patch_size)
        cells = views.hog(images, self.model.patch_size // 2, self.bins)
        return views.patchify(cells.reshape(*cells.shape[:3], -1), 2)

    def _patches(self, images: jax.Array) -> int:
        rows, columns = self.model.grid(images.shape)
        return int(rows * columns)

    def _size(self, channels: int) -> int:
        if self.target == "pixels":
            return int(self.model.patch_size**2 * channels)
        return 4 * channels * self.bins

    def _mask(self, outputs: Any, inputs: Any) -> jax.Array:
        """The patches that are to be predicted, float32 [B, N]."""
        return (outputs["mask"] if self.adversary else inputs["mask"]).astype(jnp.float32)

    def _judge(self, params: Params) -> dict[str, Any]:
        """Returns the parameters that predict difficulties."""
        return {name: params[name] for name in ("encoder", "difficulty")}

    def _difficulty(self) -> Linear:
        return Linear(1, input_ratio=output_ratio(self.model))

    def _head(self, channels: int) -> Linear:
        return Linear(self._size(channels), input_ratio=output_ratio(self.model))
