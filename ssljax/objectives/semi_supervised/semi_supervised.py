"""Base class of semi-supervised objectives: a supervised loss, and another one on the stream `unlabeled`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.objectives.base import Batch, Ctx, Loss, Params, apply, noise_of
from ssljax.objectives.images import merge, unaugmented, view_flops
from ssljax.objectives.pictures import Showing, of_views
from ssljax.objectives.supervised.classification import Classification
from ssljax.objectives.supervised.classifier import Classifier

STREAM = "unlabeled"


@dataclasses.dataclass(frozen=True)
class SemiSupervised(Classifier):
    """Cross-entropy of labelled images, plus a weighted loss of the images of the stream `unlabeled`.

    Every batch has m rows of the stream for each labelled image, m the `ratio` of the stream.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    term: ClassVar[str]  # name of the term of unlabelled images
    plain: ClassVar[type[Classification]] = Classification  # the classifier of held-out losses
    titles: ClassVar[tuple[str, ...]] = ("unlabelled",)  # of the views of an unlabelled image, in pictures

    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of images; none by default"
    )

    def looks(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None) -> jax.Array:
        """Returns the views [B, K, h, w, C] of unlabelled images [B, H, W, C] in [0, 1]."""
        raise NotImplementedError

    def unlabelled(self, logits: jax.Array, teacher: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        """Computes the loss of unlabelled images.

        Args:
            logits: logits of the student for the views of each image, [N, K, C].
            teacher: those of the teacher; of the student without a teacher.
            step: number of the step.

        Returns:
            (weight of the term; losses [N]; metrics {name: values [N]}).
        """
        raise NotImplementedError

    def check(self) -> None:
        super().check()
        if STREAM not in self.spec.streams:
            raise UserError(
                f"data.streams: this objective needs a stream {STREAM!r}, such as "
                f'dict({STREAM}=dict(source="...", ratio=7.0))'
            )
        stream = self.spec.streams[STREAM]
        if "image" not in stream["elements"]:
            raise UserError(
                f"data.streams.{STREAM}: has no images; name their column in data.streams.{STREAM}.keys, such as "
                'dict(image="image")'
            )
        shape, own = (elements.get("image", {}).get("shape") for elements in (stream["elements"], self.spec.elements))
        if shape != own:
            raise UserError(f"data.streams.{STREAM}: its images are {shape}, but those of the source are {own}")
        if stream["ratio"] != int(stream["ratio"]):
            raise UserError(
                f"data.streams.{STREAM}.ratio: got {stream['ratio']:g}, must be a whole number for this objective"
            )

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        return {**batch, STREAM: super().prepare(batch[STREAM])} if STREAM in batch else batch

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        image = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        inputs = {"image": image, "target": self.target(batch["label"])}
        if STREAM not in batch:
            return inputs
        # Row i has the rows m i to m i + m - 1 of the stream.
        rows = {name: x.reshape(len(keys), -1, *x.shape[1:]) for name, x in batch[STREAM].items()}
        count = rows["image"].shape[1]
        of_rows = jnp.stack([views.fold_in(keys, 100 + j) for j in range(count)], 1)  # [B, m]
        aspect = merge(rows["aspect"]) if "aspect" in rows else None
        made = self.looks(merge(of_rows), merge(rows["image"]), aspect)
        return {**inputs, STREAM: made.reshape(len(keys), count, *made.shape[1:])}  # [B, m, K, h, w, C]

    def held_out(self) -> Classification:
        """Returns the classifier without augmentation, on labelled images only."""
        shared = {name: getattr(self, name) for name in ("model", "spec", "steps", "reads", "mean", "std")}
        return self.plain(**shared, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        seen = inputs[STREAM]
        total = 1 + seen.shape[1] * seen.shape[2]
        labelled = self.logits(params, inputs["image"][:, None], noise_of(ctx, 1, 0, total), ctx)[:, 0]
        return {"labelled": labelled, **self.encode_unlabelled(params, extra, seen, total, ctx)}

    def encode_unlabelled(
        self, params: Params, extra: Any, seen: jax.Array, total: int, ctx: Ctx
    ) -> dict[str, jax.Array]:
        """Returns logits of the views of unlabelled images.

        Args:
            params, extra: the variables.
            seen: the views, [B, m, K, h, w, C].
            total: number of all views of an example, the first of which is the labelled image.
            ctx: context of the step.

        Returns:
            {"unlabelled": [B, m, K, C], and "teacher": of the same form, if there is one}.
        """
        images = seen.reshape(len(seen), total - 1, *seen.shape[3:])
        logits = self.logits(params, images, noise_of(ctx, total - 1, 1, total), ctx)
        return {"unlabelled": logits.reshape(*seen.shape[:3], -1)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        values, weights = losses.cross_entropy(outputs["labelled"], inputs["target"], reduce=False)
        weight = jnp.sum(weights)
        right = jnp.argmax(outputs["labelled"], -1) == jnp.argmax(inputs["target"], -1)
        rest = merge(outputs["unlabelled"])
        coefficient, added, metrics = self.unlabelled(
            rest, merge(outputs.get("teacher", outputs["unlabelled"])), ctx.step
        )
        count = jnp.float32(len(rest))
        return Loss(
            {
                "cross_entropy": (1.0, jnp.sum(values * weights), weight),
                self.term: (coefficient, jnp.sum(added), count),
            },
            {
                "accuracy": (jnp.sum(right * weights), weight),
                **{name: (jnp.sum(each), count) for name, each in metrics.items()},
            },
        )

    def flops(self, spec: Any) -> float:
        one = view_flops(self.model, self.augment, spec) + 2.0 * self.model.width * self.classes
        return one * (1 + self.spec.streams[STREAM]["ratio"] * self.passes)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        def made(batch: Batch) -> jax.Array:
            keys, images = views.example_keys(show.key, jnp.arange(len(batch["image"]))), batch["image"]
            labelled = self.augment(views.fold_in(keys, 0), images, batch.get("aspect"))
            return jnp.concatenate(
                [labelled[:, None], self.looks(views.fold_in(keys, 1), images, batch.get("aspect"))], 1
            )

        shown = {"image": jax.jit(made)(super().prepare(batch))}
        return of_views(views.centered(batch)["image"], shown, show.rows, ("labelled", *self.titles))

    @property
    def passes(self) -> float:
        """Number of trained views of each unlabelled image; one without a backward pass counts a third."""
        raise NotImplementedError

    def logits(self, params: Params, images: jax.Array, noise: Any, ctx: Ctx | None = None) -> jax.Array:
        """Logits [B, V, C] of views [B, V, h, w, C] in [0, 1]."""
        return apply(self.head(), params["head"], self.encode_images(params["encoder"], images, noise, ctx))


def ramp(step: jax.Array, steps: int | None, start: float, end: float) -> jax.Array:
    """Returns the share of a ramp that is done, from 0 at the share `start` of a run to 1 at the share `end`.

    Without a length of the run (None) it is 1.
    """
    if not steps:
        return jnp.float32(1)
    done = (step - start * steps) / max((end - start) * steps, 1e-9)
    return jnp.where(step >= end * steps, 1.0, jnp.clip(done, 0.0, 1.0))
