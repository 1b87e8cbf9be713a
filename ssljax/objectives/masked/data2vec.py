"""data2vec: the features that a teacher has of a whole image are predicted at patches that are masked.

Baevski, Hsu, Xu, Babu, Gu, Auli 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.images import unaugmented
from ssljax.objectives.masked.patches import PatchObjective, check_masks, check_token, masked_images
from ssljax.objectives.pictures import Showing
from ssljax.objectives.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Data2Vec(PatchObjective):
    """Smooth L1 error of a linear head at masked patches (eq. 2), mean over dimensions and masked patches.

    A target is the mean of the outputs of the teacher's top blocks, each normalised (section 3.3); outputs are those
    at the end of a block, in the paper those before its last residual sum. The model needs `mask_token=True`.
    """

    mask_ratio: float = schema.setting(0.6, gt=0, lt=1, doc="share of patches that are masked, in blocks")
    smallest: int = schema.setting(16, gt=0, doc="least area of a block of masked patches, in patches")
    top_blocks: int = schema.setting(6, gt=0, doc="number of the teacher's last blocks whose mean is the target (K)")
    beta: float = schema.setting(2.0, ge=0, doc="error at which the loss becomes linear; 0: the absolute error")
    teacher: Teacher = schema.setting(
        Teacher(0.9998, "constant"), doc="moving average of the encoder, which makes the targets"
    )
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.08, 1.0), "augment": {"flip": 0.5, "jitter": 1.0, "jitter_strength": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="augmentation before the patches are cut, by default crops, flips and colour jitter",
    )

    def check(self) -> None:
        super().check()
        check_token(self)
        check_masks(self)
        rows, columns = self.model.grid((1, *self.shape))
        hidden = round(self.mask_ratio * rows * columns)
        if self.smallest > hidden:
            raise UserError(
                f"objective.smallest: got {self.smallest}, must be at most {hidden}, the masked patches of an image"
            )
        depth = self.model.config.known("depth")
        if self.top_blocks > depth:
            raise UserError(
                f"objective.top_blocks: got {self.top_blocks}, must be at most the {depth} blocks of the model"
            )

    @property
    def total_dependent(self) -> bool:
        return self.teacher.schedule != "constant"

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        images = self.prepare(batch)["image"][:1]
        rows, columns = self.model.grid(images.shape)
        encoder = self.model.init(encoder_key, images, patch_mask=jnp.zeros((1, rows * columns), bool))["params"]
        head = self._head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {"teacher": {"encoder": jax.tree.map(jnp.copy, encoder)}})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        images = self.augmented(views.fold_in(keys, 0), batch)
        grid = self.model.grid(images.shape)
        mask = views.random_block_mask(views.fold_in(keys, 1), grid, self.mask_ratio, self.smallest)
        return {"image": images, "mask": mask}

    def held_out(self) -> "Data2Vec":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        images = self.pixels(inputs["image"])
        options: dict[str, Any] = {"patch_mask": inputs["mask"], "noise": noise_of(ctx), "ctx": ctx}
        tokens = apply(self.model, params["encoder"], images, **options).tokens
        states = apply(self.model, extra["teacher"]["encoder"], images, states=True).states[-self.top_blocks :]
        patches = states[:, :, self.model.config.prefix :].astype(jnp.float32)  # [K, B, N, D]
        taught = jnp.mean(jax.nn.standardize(patches, axis=-1, epsilon=1e-5), 0)
        return {"predicted": apply(self._head(), params["head"], tokens), "taught": jax.lax.stop_gradient(taught)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        taught = outputs["taught"]  # [B, N, D]
        predicted, target = (x.reshape(-1, x.shape[-1]) for x in (outputs["predicted"], taught))
        mask = inputs["mask"].astype(jnp.float32).reshape(-1)
        values, weights = losses.smooth_l1(predicted, target, self.beta, weights=mask, reduce=False)
        count = jnp.float32(len(taught))
        spread = jnp.mean(jnp.std(taught, 1), -1)  # over the patches of an image
        return Loss(
            {"smooth_l1": (1.0, jnp.sum(values * weights), jnp.sum(weights))},
            {"target_std": (jnp.sum(spread), count)},
        )

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        student = {"encoder": params["encoder"]}
        return {"teacher": self.teacher.follow(extra["teacher"], student, step, self.steps)}

    def shown(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (images, masked images), each [B, H, W, C] in [0, 1]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        images = self.visible(inputs["image"])
        return images, masked_images(images, inputs["mask"], self.model.patch_size)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        made = jax.jit(self.held_out().shown)(views.centered(batch), show.key)
        caption = f"with {self.mask_ratio:.0%} of their patches masked."
        return {"masks": self.columns(made, show.rows, caption)}

    def flops(self, spec: Any) -> float:
        rows, columns = self.model.grid((1, *self.shape))
        encoder = self.encoder_flops()
        return encoder + 2.0 * self.model.width**2 * rows * columns + encoder / 3  # the teacher has no backward pass

    def _head(self) -> Linear:
        return Linear(self.model.width, input_ratio=output_ratio(self.model))
