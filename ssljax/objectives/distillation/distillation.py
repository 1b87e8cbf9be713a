"""Knowledge distillation: a classifier learns from the probabilities that a trained classifier gives to all classes.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply
from ssljax.objectives.supervised.classification import Classification
from ssljax.objectives.supervised.classifier import Classifier

# Keys of a model that do not change its outputs in evaluations.
FREE = ("preset", "dropout", "drop_path", "attention_dropout", "dtype", "remat", "kernel", "strict", "scan", "max_len")


@dataclasses.dataclass(frozen=True)
class Distillation(Classification):
    """The weighted mean of the cross-entropy with labels and the divergence from a frozen teacher (section 2).

    The teacher sees the same view as the student. It is a part of the extra state, so a run that is continued, or
    evaluated later, does not read `teacher_from` again.
    """

    teacher_from: str | None = schema.setting(
        None,
        doc="workdir of a trained classifier, or one of its checkpoints/STEP; None: a random teacher, as a control",
    )
    teacher_model: Any = schema.setting(
        None, registry=models.REGISTRY, doc="the teacher's encoder, as in the config of its run; None: as `model`"
    )
    temperature: float = schema.setting(4.0, gt=0, doc="temperature of both distributions (T)")
    weight: float = schema.setting(
        0.9, ge=0, le=1, doc="weight of the teacher's distribution; that of the labels is 1 - weight"
    )

    not_copies: ClassVar[tuple[str, ...]] = ("teacher",)

    def check(self) -> None:
        super().check()
        if self.teacher_model is not None and self.teacher_model.inputs != self.reads:
            raise UserError(
                f"objective.teacher_model.name: this model reads {self.teacher_model.inputs}, but the student reads "
                f"{self.reads}"
            )

    @property
    def frozen_parts(self) -> Mapping[str, tuple[str, str]]:
        return {} if self.teacher_from is None else {"teacher": ("objective.teacher_from", self.teacher_from)}

    def frozen_part(self, trained: Any, params: Params, extra: Any) -> Params:
        if not isinstance(trained, Classifier):
            raise UserError(f"is a run of {type(trained).__name__}, must be one of a classifier")
        for key in ("mean", "std"):
            if getattr(trained, key) != getattr(self, key):
                raise UserError(
                    f"has seen images with objective.{key}={getattr(trained, key)}, but this run has "
                    f"{getattr(self, key)}"
                )
        named = trained.spec.classes, self.spec.classes
        if None not in named and named[0] != named[1]:
            raise UserError(f"tells the classes {_listed(named[0])}, but the data of this run have {_listed(named[1])}")
        here, there = (
            {key: value for key, value in dataclasses.asdict(o.model.config).items() if key not in FREE}
            for o in (self._teacher(), trained)
        )
        for key in here:
            if key in there and here[key] != there[key]:
                raise UserError(
                    f"has a model with {key}={there[key]}, but objective.teacher_model has {key}={here[key]}"
                )
        return trained.evaluated(params, extra)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        student, teacher = jax.random.split(key)
        return Variables(super().init(student, batch).params, {"teacher": self._teacher().init(teacher, batch).params})

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        network, teacher = self._teacher(), extra["teacher"]
        taught = apply(network.head(), teacher["head"], network.encoded(teacher["encoder"], inputs, None).pooled)
        student = super().encode(params, extra, inputs, ctx)
        return {"student": student, "teacher": jax.lax.stop_gradient(taught)}  # [B, C]

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        student, teacher = outputs["student"], outputs["teacher"]
        found = super().loss(params, extra, student, inputs, ctx)
        values, weights = losses.distillation(student, teacher, temperature=self.temperature, reduce=False)
        weight = jnp.sum(weights)
        _, labels, count = found.terms["cross_entropy"]
        agreement = jnp.argmax(student, -1) == jnp.argmax(teacher, -1)
        return found._replace(
            terms={
                "cross_entropy": (1 - self.weight, labels, count),
                "distillation": (self.weight, jnp.sum(values * weights), weight),
            },
            metrics={**found.metrics, "agreement": (jnp.sum(agreement * weights), weight)},
        )

    def flops(self, spec: Any) -> float:
        # A backward pass costs two forward passes; the teacher has none.
        teacher = self._teacher()
        head = 2.0 * teacher.model.width * self.classes
        return super().flops(spec) + (teacher.encoder_flops(self.augment, spec) + head) / 3

    def _teacher(self) -> Classification:
        """The teacher as a classifier with a model of its own."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(Classification)}
        if self.teacher_model is not None:
            plain["model"] = self.teacher_model.module(self.spec, "objective.teacher_model")
        return Classification(**plain)


def _listed(classes: tuple[str, ...]) -> str:
    """The first names of classes."""
    return ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
