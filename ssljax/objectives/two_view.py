"""Base class of objectives that compare two views of an example: augmented images, sounds or graphs, or texts under two
dropout masks.

    view -> encoder -> projector z -> predictor p        (student; without a predictor p = z)
    view -> teacher's encoder -> teacher's projector     (target; without a teacher the student's z)

A method is a subclass: its defaults choose the parts, and `compare` is its loss. So an ablation changes one key, such
as `objective.predictor=None`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import MLPHead
from ssljax.layers.width import output_ratio
from ssljax.losses.reduction import l2_normalize
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.encoder import EncoderObjective
from ssljax.objectives.images import merge, uniformity
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.teacher import Teacher

# Values of `augment.name`, by the inputs that they augment.
_PIPELINES = {"images": "two_views", "graphs": "graph_views", "spectrograms": "audio_views"}
PIPELINES = views.REGISTRY.only(*_PIPELINES.values())


class Views(NamedTuple):
    """The vectors of the two views of each example that a method compares, [B, 2, E] each.

    Attributes:
        z: the student's projections.
        p: its predictions; z without a predictor.
        target: the teacher's projections, without gradient; z without a teacher.
    """

    z: jax.Array
    p: jax.Array
    target: jax.Array


class Compared(NamedTuple):
    """The result of a method.

    Attributes:
        values: the loss of each example, [B]; or the loss of the batch, a scalar.
        metrics: {name: (sum, weight)}.
        rows: vectors for the queue, [B, E].
    """

    values: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]] = {}  # noqa: RUF012 (never mutated)
    rows: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class TwoView(EncoderObjective):
    """Two views of each example, encoder, projector, and optionally predictor, teacher and queue.

    Texts are not augmented, nor are spectrograms that the data have in the place of sounds: their views differ in
    dropout and stochastic depth. Held-out losses have neither, so that the two views of a text are equal there.
    """

    coupled: ClassVar[bool] = True
    term: ClassVar[str]  # name of the loss term
    joint: ClassVar[bool] = False  # True: a batch norm of the heads has the statistics of both views together
    reads_target: ClassVar[bool] = False  # True: `compare` reads the targets, so that a teacher has an effect
    reads_queue: ClassVar[bool] = False  # True: `compare` reads the queue and returns vectors for it

    augment: Any = schema.setting(
        {"name": "two_views"},
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of SimCLR; 'graph_views' for graphs, "
        "'audio_views' for sounds",
    )
    projector: Projector = schema.setting(Projector(), doc="network between the encoder and the loss")
    predictor: Predictor | None = schema.setting(
        None, doc="network that predicts the target of one view from the projection of the other; None: none"
    )
    teacher: Teacher | None = schema.setting(
        None, doc="moving average of encoder and projector, which makes the targets; None: the student makes them"
    )
    queue: int = schema.setting(
        0, ge=0, doc="number of vectors of earlier batches that the loss sees; they begin as random directions"
    )

    def check(self) -> None:
        super().check()
        if self.teacher and not self.reads_target:
            raise UserError("objective.teacher: this objective compares the student's vectors only, must be None")
        if self.queue and not self.reads_queue:
            raise UserError("objective.queue: this objective sees no vectors of earlier batches, must be 0")
        if self.reads_labels and "label" not in self.spec.elements:
            raise UserError(f"objective.name: {self.term} reads labels, but the data have none")
        fitting = _PIPELINES.get(self.reads, "")
        if self.augmented and not isinstance(self.augment, views.REGISTRY.get(fitting)):
            raise UserError(f"objective.augment.name: must be {fitting!r} for a model that reads {self.reads}")
        if not self.augmented and not any(getattr(self.model.config, key, 0) for key in ("dropout", "drop_path")):
            raise UserError(
                "model.dropout: got 0, must be more than 0 (or model.drop_path): without augmentation, the two views "
                f"of {self.reads} differ in them only"
            )

    @property
    def augmented(self) -> bool:
        """True if the model reads images, graphs or sounds."""
        of_sounds = self.reads == "spectrograms" and self.model.config.sample_rate is not None
        return self.reads in ("images", "graphs") or of_sounds

    @property
    def reads_labels(self) -> bool:
        """Returns True if `views` passes the labels of the examples on."""
        return False

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        """Computes the loss of a method.

        Args:
            seen: projections, predictions and targets of the whole batch.
            inputs: the result of `views`.
            extra: the extra state; "queue" [Q, E] if there is one.
            ctx: the context of the step.
        """
        raise NotImplementedError

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, projector_key, predictor_key, queue_key = jax.random.split(key, 4)
        params = {"encoder": self.init_encoder(encoder_key, batch)}
        params["projector"] = self._projector().init(projector_key, jnp.zeros((2, self.model.width)))["params"]
        extra: dict[str, Any] = {}
        if self.teacher:
            extra["teacher"] = jax.tree.map(jnp.copy, dict(params))
        if self.predictor:
            params["predictor"] = self._predictor().init(predictor_key, jnp.zeros((2, self.projector.output)))["params"]
        if self.queue:
            vectors = l2_normalize(jax.random.normal(queue_key, (self.queue, self.projector.output)))
            extra["queue"] = nn.LogicallyPartitioned(vectors, ("queue", None))
        return Variables(params, extra)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        if self.reads == "graphs":
            inputs = self.augment(keys, self.read(batch))  # [B, 2, ...] each
        elif self.augmented and self.reads == "spectrograms":
            sounds = self.augment(keys, batch["audio"], batch["audio_length"], self.model.log_mel)
            inputs = {"spectrogram": sounds}  # [B, 2, T, F]
        elif self.augmented:
            inputs = {"image": self.augment(keys, batch["image"], batch.get("aspect"))}  # [B, 2, h, w, C]
        else:
            inputs = {name: jnp.repeat(x[:, None], 2, 1) for name, x in self.read(batch).items()}
        return inputs | ({"label": batch["label"]} if self.reads_labels else {})

    @property
    def total_dependent(self) -> bool:
        return self.teacher is not None and self.teacher.schedule != "constant"

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        out = {"student": self._pooled(params["encoder"], inputs, noise_of(ctx, 2), ctx)}
        if self.teacher:
            out["teacher"] = jax.lax.stop_gradient(self._pooled(extra["teacher"]["encoder"], inputs, None))
        return out

    def _pooled(self, encoder: Params, inputs: Any, noise: Any, ctx: Ctx | None = None) -> jax.Array:
        """Pooled features of both views, [B, 2, D]."""
        views = self.read(inputs)
        pooled = self.encoded(encoder, {name: merge(x) for name, x in views.items()}, noise, ctx).pooled
        return pooled.reshape(-1, 2, pooled.shape[-1])

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        z = self._heads(self._projector(), params["projector"], outputs["student"])
        p = self._heads(self._predictor(), params["predictor"], z) if self.predictor else z
        target = z
        if self.teacher:
            target = self._heads(self._projector(), extra["teacher"]["projector"], outputs["teacher"])
            target = jax.lax.stop_gradient(target)
        found = self.compare(Views(z, p, target), inputs, extra, ctx)
        n = jnp.float32(len(z))
        metrics = {
            "alignment": (n * losses.alignment(z[:, 0], z[:, 1]), n),
            "uniformity": (n * uniformity(z[:, 0]), n),
            "feature_std": (n * losses.feature_std(outputs["student"][:, 0]), n),
            "projection_std": (n * losses.feature_std(z[:, 0]), n),
            **found.metrics,
        }
        total = jnp.sum(jnp.broadcast_to(found.values, len(z)))
        rows = jax.lax.stop_gradient(found.rows) if self.queue else ()
        return Loss({self.term: (1.0, total, n)}, metrics, rows=rows)

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        out = dict(extra)
        if self.teacher:
            student = {name: params[name] for name in extra["teacher"]}
            out["teacher"] = self.teacher.follow(extra["teacher"], student, step, self.steps)
        if self.queue:
            out["queue"] = jnp.concatenate([l2_normalize(rows), extra["queue"]])[: self.queue]  # newest first
        return out

    def flops(self, spec: Any) -> float:
        projector = self.encoder_flops(self.augment, spec) + self._projector().flops(self.model.width)
        predictor = self._predictor().flops(self.projector.output) if self.predictor else 0.0
        # A backward pass costs two forward passes; the teacher has none, so its views cost a third of trained views.
        return 2 * (projector + predictor) + (2 * projector / 3 if self.teacher else 0.0)

    @property
    def pairings(self) -> tuple[tuple[int, int], ...]:
        """The pairs (view of the prediction, view of the target) of a loss that is symmetric without heads of its own.

        One pair if predictions and targets are projections; both, whose mean is taken, otherwise.
        """
        return ((0, 1), (1, 0)) if self.predictor or self.teacher else ((0, 1),)

    def _projector(self) -> MLPHead:
        return self.projector.module(output_ratio(self.model))

    def _predictor(self) -> MLPHead:
        assert self.predictor
        return self.predictor.module(self.projector.output)

    def _heads(self, head: MLPHead, params: Params, x_BxVxD: jax.Array) -> jax.Array:
        """Applies a head to both views; a batch norm has the statistics of each view alone, unless they are joint."""
        if self.joint:
            return apply(head, params, x_BxVxD)
        return jnp.stack([apply(head, params, x_BxVxD[:, v]) for v in range(x_BxVxD.shape[1])], 1)
