"""Mixture of denoisers: each text is corrupted in one of several ways, which a token at its beginning names.

Tay et al. 2022, "UL2: Unifying Language Learning Paradigms", section 3.1.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base import schema
from ssljax.objectives.base import Batch, Ctx, Loss, Params
from ssljax.objectives.masked.span_corruption import check_room
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import valid

MODES = ("R", "S", "X")


@dataclasses.dataclass(frozen=True)
class MixtureOfDenoisers(SequenceObjective):
    """Mean cross-entropy per target token, in nats; the metrics `nll_R`, `nll_S` and `nll_X` are those of one mode.

    Mode R hides short spans, mode X long spans or many, and mode S the end of the text. A text has the mode of its
    denoiser, and all denoisers of a mode are equally likely. The last three ids of the vocabulary name the modes; the
    sentinels are the ids before them. A row of packed texts is corrupted as a single text.
    """

    heading: ClassVar[str] = "Hidden spans"
    caption: ClassVar[str] = (
        "Held-out texts with their mode and numbers in place of spans, the spans that the model writes, the true ones."
    )

    regular: tuple[tuple[float, float], ...] = schema.setting(
        ((0.15, 3.0), (0.15, 8.0)), doc="denoisers (share of hidden tokens, mean span) of mode R"
    )
    sequential: float = schema.setting(0.25, gt=0, lt=1, doc="share of hidden tokens at the end of a text in mode S")
    extreme: tuple[tuple[float, float], ...] = schema.setting(
        ((0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)),
        doc="denoisers (share of hidden tokens, mean span) of mode X",
    )
    shares: tuple[float, float, float] | None = schema.setting(
        None, ge=0, doc="shares of texts in modes R, S and X, of their sum; None: all denoisers are equally likely"
    )

    def validate(self) -> None:
        for name in ("regular", "extreme"):
            found = getattr(self, name)
            if not found or not all(0 < rate < 1 and span >= 1 for rate, span in found):
                raise ValueError(f"{name}: got {found}, must be pairs (share in (0, 1), mean span of at least 1)")
        if self.shares is not None and not sum(self.shares):
            raise ValueError(f"shares: got {self.shares}, must have a positive sum")

    def check(self) -> None:
        counts = [views.span_counts(self.spec.max_len, d.rate, d.mean_span)[1] for d in self.denoisers]
        check_room(self, int(max(counts)) + 1 + len(MODES), "sentinels and modes")

    @property
    def first_sentinel(self) -> int:
        return super().first_sentinel - len(MODES)

    @property
    def denoisers(self) -> list[views.Denoiser]:
        """The denoisers of modes R, S and X, in this order."""
        regular, extreme = ([views.Denoiser(*d, ends_hidden=False) for d in ds] for ds in (self.regular, self.extreme))
        return [*regular, views.Denoiser(self.sequential), *extreme]

    @property
    def modes(self) -> list[int]:
        """The mode of each denoiser: its number in MODES."""
        return [0] * len(self.regular) + [1] + [2] * len(self.extreme)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        count = [self.modes.count(mode) for mode in self.modes]
        weights = [(self.shares[mode] if self.shares else n) / n for mode, n in zip(self.modes, count)]
        below = jnp.cumsum(jnp.asarray(weights)) / sum(weights)
        choice = jnp.sum(jax.vmap(jax.random.uniform)(views.fold_in(keys, 1))[:, None] >= below[:-1], axis=1)
        found = views.mixed_span_corrupt(
            keys,
            batch["tokens"],
            jnp.sum(valid(batch), axis=1),
            choice,
            self.denoisers,
            sentinel=self.first_sentinel,
        )
        mode = jnp.asarray(self.modes)[choice]
        name = (self.first_sentinel + 1 + mode).astype(jnp.int32)
        begun = lambda x, first: jnp.concatenate([first[:, None], x], axis=1)  # noqa: E731
        tokens, kept = begun(found.tokens, name), begun(found.valid, jnp.ones(len(mode), bool))
        return {**found._asdict(), "tokens": tokens, "valid": kept, "mode": mode}

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores, loss = self.scores(params, outputs, inputs)
        nll = scores.nll.reshape(inputs["target"].shape)
        of = {name: inputs["counted"] & (inputs["mode"] == mode)[:, None] for mode, name in enumerate(MODES)}
        by_mode = {f"nll_{name}": (jnp.sum(nll * own), jnp.sum(own)) for name, own in of.items()}
        return loss._replace(metrics={**loss.metrics, **by_mode})

    def sign(self, token: int) -> str | None:
        return f"[{MODES[token - self.first_sentinel - 1]}]" if token > self.first_sentinel else super().sign(token)

    def lengths(self, spec: Any) -> tuple[int, int]:
        sizes = [views.denoising_lengths(spec.max_len, d.rate, d.mean_span) for d in self.denoisers]
        read, written = map(max, zip(*sizes))
        return read + 1, written
