"""I-JEPA: from some patches of an image, the representations of blocks that are hidden are predicted.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, "Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture".
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.width import output_ratio
from ssljax.models.mae import MAEDecoder
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.images import unaugmented
from ssljax.objectives.masked.patches import PatchObjective, check_fixed, masked_images, places_of, run_share
from ssljax.objectives.pictures import Showing
from ssljax.objectives.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class IJEPA(PatchObjective):
    """The error of the predicted representations, mean over dimensions and the patches of a block, then over blocks.

    The predictor sees mask tokens at all hidden patches at once, where the authors call it for each block. The number
    of patches of the context is constant: of a larger context a random part is taken; a smaller one is filled up with
    patches outside of it, with those of targets only where nothing else is left. Evaluations use the teacher.
    """

    targets: int = schema.setting(4, gt=0, doc="number of target blocks")
    target_scale: tuple[float, float] = schema.setting(
        (0.15, 0.2), gt=0, le=1, doc="range of the share of the patches in a target block"
    )
    target_aspect: tuple[float, float] = schema.setting(
        (0.75, 1.5), gt=0, doc="range of height / width of a target block"
    )
    context_scale: tuple[float, float] = schema.setting(
        (0.85, 1.0),
        gt=0,
        le=1,
        doc="range of the share of the patches in the context block, with the targets in it",
    )
    context: float = schema.setting(
        0.25, gt=0, lt=1, doc="share of the patches that the encoder sees, at random among those of the context"
    )
    masking: Any = schema.setting(
        None,
        registry=views.MASKINGS,
        doc="strategy instead of target blocks: what the context, a share `context` of the patches, lacks is one "
        "target; None: blocks",
    )
    error: Literal["mse", "smooth_l1"] = schema.setting(
        "mse", doc="error of a prediction; the paper has squares, the authors' code 'smooth_l1'"
    )
    normalize_targets: bool = schema.setting(
        True, doc="whether the teacher's vectors are normalised without scale and shift, as in the authors' code"
    )
    predictor: MAEDecoder = schema.setting(
        MAEDecoder(), doc="predictor over context and mask tokens, not used after training"
    )
    teacher: Teacher = schema.setting(
        Teacher(schedule="linear"), doc="moving average of the encoder, which makes the targets"
    )
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.3, 1.0)},
        registry=views.REGISTRY.only("single"),
        doc="augmentation before the patches are cut, by default crops",
    )

    def validate(self) -> None:
        for name in ("target_scale", "target_aspect", "context_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: got {(low, high)}, the first number must be at most the second")

    def check(self) -> None:
        super().check()
        patches = math.prod(self._grid())
        kept, most = self._kept(self._grid()), patches - math.ceil(max(self.target_scale) * patches)
        if self.masking is not None:
            self._check_masking(kept, patches)
        elif not 1 <= kept <= most:
            raise UserError(
                f"objective.context: got {self.context}, which is {kept} of {patches} patches, must be at least 1 "
                f"and at most the {most} that a target block of {max(self.target_scale):.0%} leaves"
            )

    def _check_masking(self, kept: int, patches: int) -> None:
        if not 1 <= kept < patches:
            raise UserError(
                f"objective.context: got {self.context}, which is {kept} of {patches} patches, must be at least 1 and "
                "leave one to be predicted"
            )
        for key in ("targets", "target_scale", "target_aspect", "context_scale"):
            if not schema.is_default(self, key):
                raise UserError(f"objective.{key}: has no effect with objective.masking; remove one of them")
        check_fixed(self)
        self.masking.check("objective.masking", patches, self._hidden(self._grid()))

    @property
    def total_dependent(self) -> bool:
        return self.teacher.schedule != "constant" or bool(self.masking and self.masking.grows)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, predictor_key = jax.random.split(key)
        images = self.prepare(batch)["image"][:1]
        inputs = views_of(self, key, {"image": images}, jnp.int32(0))
        encoder = self.model.init(encoder_key, images)["params"]
        kept, front = (jnp.zeros((1, n, self.model.width)) for n in (inputs["keep"].shape[1], self.model.config.prefix))
        module = self._predictor(self.model.grid(inputs["image"].shape))
        predictor = module.init(predictor_key, kept, inputs["keep"], prefix=front)["params"]
        return Variables(
            {"encoder": encoder, "predictor": predictor}, {"teacher": {"encoder": jax.tree.map(jnp.copy, encoder)}}
        )

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        images = self.augmented(views.fold_in(keys, 0), batch)
        grid = self.model.grid(images.shape)
        if self.masking is not None:
            ratio = self._hidden(grid)
            made = self.masking(views.fold_in(keys, 1), grid, ratio, run_share(self, step))
            keep = places_of(made.visible, self.masking.seen(math.prod(grid), ratio))
            return {"image": images, "keep": keep, "targets": made.target[:, None]}
        targets = views.random_blocks(views.fold_in(keys, 1), grid, self.targets, self.target_scale, self.target_aspect)
        whole = views.random_blocks(views.fold_in(keys, 2), grid, 1, self.context_scale, (1.0, 1.0))[:, 0]
        hidden = targets.any(1)
        # Where the context has too few patches, others that no target has; where these are too few, those of targets.
        rank = jnp.where(hidden, 0, jnp.where(whole, 2, 1))
        keep = views.random_subset(views.fold_in(keys, 3), rank, self._kept(grid))
        return {"image": images, "keep": keep, "targets": targets}

    def held_out(self) -> "IJEPA":
        masking = self.masking and self.masking.last()
        return dataclasses.replace(self, augment=unaugmented(self.augment), masking=masking)

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        images, noise = self.pixels(inputs["image"]), noise_of(ctx)
        encoded = apply(self.model, params["encoder"], images, keep=inputs["keep"], noise=noise, ctx=ctx)
        module, noise = self._predictor(self.model.grid(images.shape)), None if noise is None else noise.at("predictor")
        options = {"noise": noise, "prefix": encoded.prefix, "ctx": ctx, "part": "predictor"}
        predicted = apply(module, params["predictor"], encoded.tokens, inputs["keep"], **options)
        taught = apply(self.model, extra["teacher"]["encoder"], images).tokens.astype(jnp.float32)
        if self.normalize_targets:
            taught = jax.nn.standardize(taught, axis=-1, epsilon=1e-5)
        return {"predicted": predicted, "taught": jax.lax.stop_gradient(taught)}  # [B, N, D]

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        function = losses.mse if self.error == "mse" else losses.smooth_l1
        predicted, taught = outputs["predicted"], outputs["taught"]
        flat = [x.reshape(-1, x.shape[-1]) for x in (predicted, taught)]
        error_BxN = function(*flat, reduce=False)[0].reshape(predicted.shape[:2])
        inside = inputs["targets"].astype(jnp.float32)  # [B, M, N]
        values = jnp.mean(jnp.sum(inside * error_BxN[:, None], -1) / jnp.sum(inside, -1), -1)
        count = jnp.float32(len(values))
        spread = jnp.mean(jnp.std(taught.astype(jnp.float32), 1), -1)  # over the patches of an image
        return Loss({self.error: (1.0, jnp.sum(values), count)}, {"target_std": (jnp.sum(spread), count)})

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        student = {"encoder": params["encoder"]}
        return {"teacher": self.teacher.follow(extra["teacher"], student, step, self.steps)}

    def model_params(self, params: Params, extra: Any) -> Params:
        return extra["teacher"]["encoder"]

    def shown(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (images, images without the patches that the encoder does not see), each [B, H, W, C] in [0, 1]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        count = inputs["targets"].shape[-1]
        seen = jnp.any(inputs["keep"][..., None] == jnp.arange(count), 1)
        images = self.visible(inputs["image"])
        return images, masked_images(images, ~seen, self.model.patch_size)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        made = jax.jit(self.held_out().shown)(views.centered(batch), show.key)
        caption = "and the patches from which hidden blocks are predicted."
        return {"masks": self.columns(made, show.rows, caption)}

    def flops(self, spec: Any) -> float:
        kept = self._kept(self._grid())
        if self.masking is not None:
            kept = self.masking.seen(math.prod(self._grid()), self._hidden(self._grid()))
        student = self.encoder_flops(kept)
        predictor = self._predictor(self._grid()).flops(kept, self.model.width)
        return student + predictor + self.encoder_flops() / 3  # the teacher has no backward pass

    def _grid(self) -> tuple[int, int]:
        rows, columns = self.model.grid((1, *self.shape))
        return rows, columns

    def _kept(self, grid: tuple[int, int]) -> int:
        return round(self.context * grid[0] * grid[1])

    def _hidden(self, grid: tuple[int, int]) -> float:
        """Share of the patches that the encoder does not see."""
        return 1 - self._kept(grid) / math.prod(grid)

    def _predictor(self, grid: tuple[int, int]) -> Any:
        return self.predictor.module(grid, self.model.width, output_ratio(self.model))
