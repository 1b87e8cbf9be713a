"""Generators of the runs of a study: size ladders, token and isoFLOP grids, cool-downs of one trunk, data shares.

A generator returns variants of one config. The rules are stated at its keys; all of them keep what they do not name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from ssljax.base import durations
from ssljax.base.durations import Duration
from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting
from ssljax.config import RunConfig
from ssljax.scaling.axes import Changes
from ssljax.scaling.cost import Costs

GENERATORS = Registry(
    "generator",
    {
        "ladder": "ssljax.scaling.generators:Ladder",
        "tokens": "ssljax.scaling.generators:TokenGrid",
        "isoflop": "ssljax.scaling.generators:IsoFlop",
        "cooldowns": "ssljax.scaling.generators:Cooldowns",
        "shares": "ssljax.scaling.generators:Shares",
    },
    has=("variants",),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run of a generator.

    Attributes:
        changes: {dotted key: value}, how its config differs from that of the study.
        label: the values that name it, such as {"depth": 4}.
        after: number, in the list of the generator, of the variant whose last state the run continues; None: none.
        stop: step after which the run is done, as part of longer ones; None: it ends with its last step.
    """

    changes: Changes
    label: Changes
    after: int | None = None
    stop: int | None = None


class Base(Protocol):
    """A config that a generator varies."""

    costs: Costs

    def config(self, changes: Mapping[str, Any]) -> RunConfig:
        """Returns the checked config with other values of some keys."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A power law for a setting: the config's value times (x / x0)^power, where x is a size of the run."""

    of: Literal["width", "parameters", "tokens", "flops"] = setting(
        doc="the size x of a run; tokens: examples where the data have no tokens; flops: training FLOPs of the run"
    )
    power: float = setting(doc="exponent; 0: no dependence on the size")
    at: float | None = setting(
        None, gt=0, doc="the size x0 at which the value of the config holds; None: the size of the config itself"
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Keys that generators share: sizes of the model by one number, its depth, and rules for settings."""

    depths: tuple[int, ...] = setting(
        (), ge=1, doc="numbers of blocks, one size of the model each; (): the size of the config alone"
    )
    aspect: float | None = setting(None, gt=0, doc="width per block: width = aspect x depth; None: that of the config")
    head_dim: int | None = setting(
        None, ge=1, doc="width of a head; the width is rounded to a multiple of it; None: that of the config"
    )
    groups: tuple[str, ...] = setting(
        ("model",), doc="groups of the config that get the size; of a model with two towers, both of them"
    )
    learning_rate: Rule | None = setting(
        None, doc="rule for optimizer.learning_rate; muP and most practice: of width, power -1; None: no rule"
    )
    batch_size: Rule | None = setting(None, doc="rule for batch_size, rounded to `batch_multiple`; None: no rule")
    batch_multiple: int = setting(8, ge=1, doc="divisor of the batch sizes that the rule gives")

    def sizes(self, base: Base) -> list[Variant]:
        """Returns a variant for each depth, without rules."""
        if not self.depths:
            return [Variant({}, {})]
        return [Variant(self._sized(base, depth), {"depth": depth}) for depth in self.depths]

    def _sized(self, base: Base, depth: int) -> Changes:
        config = base.config({})
        changes: Changes = {}
        for path in self.groups:
            model: Any = config
            for part in path.split("."):
                model = getattr(model, part, None)
            if any(getattr(model, key, None) is None for key in ("width", "depth", "heads")):
                kind = type(model).__name__.removesuffix("Config")
                raise UserError(f"study.generator.groups: {path} ({kind}) has no width, depth and heads to set")
            changes |= {f"{path}.{key}": v for key, v in dimensions(model, depth, self.aspect, self.head_dim).items()}
        return changes

    def ruled(self, base: Base, changes: Changes) -> Changes:
        """Returns the changes with batch size and learning rate by the rules."""
        if self.batch_size is None and self.learning_rate is None:
            return changes
        given, config = base.config({}), base.config(changes)
        out = dict(changes)
        if self.batch_size is not None:
            factor = self._factor(self.batch_size, base, given, config)
            multiple = self.batch_multiple
            out["batch_size"] = max(1, round(given.batch_size * factor / multiple)) * multiple
        if self.learning_rate is not None:
            rate = given.optimizer.learning_rate * self._factor(self.learning_rate, base, given, config)
            out["optimizer.learning_rate"] = float(f"{rate:.4g}")
        return out

    def _factor(self, rule: Rule, base: Base, given: RunConfig, config: RunConfig) -> float:
        at = self._size(rule.of, base, given) if rule.at is None else rule.at
        return (self._size(rule.of, base, config) / at) ** rule.power

    def _size(self, of: str, base: Base, config: RunConfig) -> float:
        cost = base.costs(config)
        if of == "width":
            model: Any = config
            for part in self.groups[0].split("."):
                model = getattr(model, part)
            return float(model.width)
        found = {"parameters": cost.parameters, "tokens": cost.tokens or cost.examples, "flops": cost.flops}[of]
        if not found:
            raise UserError(f"study.generator: a rule is of {of!r}, which the objective does not count")
        return float(found)


def dimensions(model: Any, depth: int, aspect: float | None = None, head_dim: int | None = None) -> Changes:
    """Returns the keys of a model of another depth at constant aspect.

    The width is aspect x depth, rounded to a multiple of the width per head, at least one head; heads = width / width
    per head. A given `mlp_dim` keeps its ratio to the width (rounded to 8), given `kv_heads` their ratio to the heads
    (rounded down to a divisor of the heads); a `head_dim` of the config stays.

    Args:
        model: configuration of the model, with width, depth and heads.
        depth: number of blocks.
        aspect: width per block; None: that of `model`.
        head_dim: width of a head; None: the width per head of `model`.
    """
    head = head_dim or max(1, model.width // model.heads)
    heads = max(1, round((aspect or model.width / model.depth) * depth / head))
    out: Changes = {"depth": depth, "width": heads * head, "heads": heads}
    if head_dim is not None and getattr(model, "head_dim", None) is not None:
        out["head_dim"] = head_dim
    if getattr(model, "mlp_dim", None) is not None:
        out["mlp_dim"] = max(8, round(model.mlp_dim / model.width * out["width"] / 8) * 8)
    if getattr(model, "kv_heads", None) is not None:
        most = max(1, heads * model.kv_heads // model.heads)
        out["kv_heads"] = max(n for n in range(1, most + 1) if heads % n == 0)
    return out


@dataclasses.dataclass(frozen=True)
class Ladder(Sizes):
    """Sizes of the model at constant aspect (Kaplan et al. 2020, section 3.1: the shape matters little)."""

    def validate(self) -> None:
        if not self.depths:
            raise ValueError("depths: got an empty list, must hold at least one number of blocks")

    def variants(self, base: Base) -> list[Variant]:
        """Returns a variant for each depth."""
        return [Variant(self.ruled(base, size.changes), size.label) for size in self.sizes(base)]


@dataclasses.dataclass(frozen=True)
class TokenGrid(Sizes):
    """Sizes of the model x lengths of the run."""

    lengths: tuple[Duration, ...] = setting((), doc="durations such as '10M tokens' or '2M examples'")
    per_parameter: tuple[float, ...] = setting(
        (),
        gt=0,
        doc="further lengths, tokens (or examples) per parameter; Hoffmann et al. 2022: about 20",
    )

    def validate(self) -> None:
        if not (self.lengths or self.per_parameter):
            raise ValueError("lengths: missing; give lengths, or per_parameter")
        for length in self.lengths:
            durations.parse(length, "lengths")

    def variants(self, base: Base) -> list[Variant]:
        """Returns a variant for each size and length."""
        out = []
        for size in self.sizes(base):
            for length in self.lengths:
                changes = self.ruled(base, {**size.changes, "steps": length})
                out.append(Variant(changes, {**size.label, "steps": length}))
            for ratio in self.per_parameter:
                wanted = ratio * base.costs(base.config(size.changes)).parameters
                changes = {**size.changes, "steps": self._steps(base, size.changes, wanted)}
                ruled = self.ruled(base, changes)
                ruled["steps"] = self._steps(base, {**ruled, "steps": changes["steps"]}, wanted)
                out.append(Variant(ruled, {**size.label, "per_parameter": ratio}))
        return out

    def _steps(self, base: Base, changes: Changes, wanted: float) -> int:
        cost = base.costs(base.config(changes))
        return max(1, round(wanted / (cost.batch_size * (cost.tokens_per_example or 1))))


LEAST_STEPS = 10  # fewer steps of a run make its FLOPs miss a budget by 5 % or more


@dataclasses.dataclass(frozen=True)
class IsoFlop(Sizes):
    """Budgets x sizes: every size trains for as many steps as the budget pays (Hoffmann et al. 2022, approach 2).

    Steps = budget / (training FLOPs of a step), rounded. The FLOPs of a step are three forward passes of the batch by
    the formula of the objective.
    """

    budgets: tuple[float, ...] = setting((), gt=0, doc="training FLOPs of a run")

    def validate(self) -> None:
        for key in ("budgets", "depths"):
            if not getattr(self, key):
                raise ValueError(f"{key}: got an empty list, must hold at least one number")

    def variants(self, base: Base) -> list[Variant]:
        """Returns a variant for each budget and size.

        Raises:
            UserError: a budget pays too few steps of a size, or the objective counts no FLOPs.
        """
        out = []
        for budget in self.budgets:
            for size in self.sizes(base):
                changes = {**size.changes, "steps": self._steps(base, size, size.changes, budget)}
                changes = self.ruled(base, changes)
                changes["steps"] = self._steps(base, size, changes, budget)
                out.append(Variant(changes, {"budget": budget, **size.label}))
        return out

    def _steps(self, base: Base, size: Variant, changes: Changes, budget: float) -> int:
        cost = base.costs(base.config(changes))
        if not cost.flops_per_step:
            raise UserError("study.generator: the objective counts no FLOPs, so a budget has no number of steps")
        steps = round(budget / cost.flops_per_step)
        if steps < LEAST_STEPS:
            raise UserError(
                f"study.generator.budgets: {budget:.3g} FLOPs pay {steps} steps at {_words(size.label)} "
                f"({cost.flops_per_step:.3g} each), must be at least {LEAST_STEPS}; raise the budget, or leave it out"
            )
        return steps


@dataclasses.dataclass(frozen=True)
class Cooldowns(Sizes):
    """Many lengths for the price of the longest: cool-downs from one trunk at the peak rate (Hägele et al. 2024).

    A run of T steps with the schedule `wsd` equals one at a constant rate up to its decay of D steps. So a trunk is
    trained at the constant rate once, in segments, and each length begins from it at step T - D. The result is the run
    that the schedule gives from scratch; its config and its hash are the same.
    """

    lengths: tuple[Duration, ...] = setting((), doc="lengths of the runs, their decay included")

    def validate(self) -> None:
        if not self.lengths:
            raise ValueError("lengths: got an empty list, must hold at least one duration")
        for length in self.lengths:
            durations.parse(length, "lengths")

    def variants(self, base: Base) -> list[Variant]:
        """Returns, for each size, the segments of the trunk, and a run for each length that continues one of them.

        Raises:
            UserError: the schedule is another one, its warm-up is a share of the run, or something else in the config
                depends on the length of the run.
        """
        out: list[Variant] = []
        for size in self.sizes(base):
            changes = self.ruled(base, size.changes)
            config = base.config(changes)
            check_trunk(config)
            warmup = config.schedule.warmup
            branches: dict[int, list[Duration]] = {}
            for length in self.lengths:
                given = base.config({**changes, "steps": length})
                resolved = given.schedule.resolve(_whole(base, given))
                total = base.costs(given).steps
                branches.setdefault(max(resolved.warmup, total - resolved.decay), []).append(length)
            before = None
            for step in sorted(branches):
                if step:  # else the run is all decay and begins from scratch
                    label = {**size.label, "trunk": step}
                    out.append(Variant(trunk_changes(changes, step, warmup), label, before, step))
                    before = len(out) - 1
                for length in branches[step]:
                    whole = {**changes, "steps": length}
                    out.append(Variant(whole, {**size.label, "steps": length}, before))
        return out


def _whole(base: Base, config: RunConfig) -> durations.RunLengths:
    return dataclasses.replace(base.costs.lengths(config), total_steps=base.costs(config).steps)


def trunk_changes(changes: Changes, step: int, warmup: Duration) -> Changes:
    """Returns the changes of a segment of the trunk: the constant rate, up to a step.

    The config has a further step, which is not trained: at its last step a run logs and evaluates, and a run from
    scratch does not at this one.
    """
    return {
        **changes,
        "steps": step + 1,
        "schedule.name": "constant",
        "schedule.warmup": warmup,
        "early_stopping": None,
    }


def check_trunk(config: RunConfig) -> None:
    """Raises UserError if cool-downs of the config cannot share a trunk."""
    if config.to_dict()["schedule"]["name"] != "wsd":
        raise UserError("study.generator: cool-downs need schedule.name=wsd, whose rate is constant up to the decay")
    if durations.depends_on_total(config.schedule.warmup):
        raise UserError(
            f"schedule.warmup: got {config.schedule.warmup!r}, must be a number of steps, examples or tokens, since "
            f"the runs of different lengths share their beginning"
        )
    for key in ("objective", "optimizer"):
        if getattr(config, key).total_dependent:
            raise UserError(
                f"{key}: has a setting that depends on the length of the run, so runs of different lengths have no "
                f"common beginning; cool-downs cannot share a trunk"
            )


@dataclasses.dataclass(frozen=True)
class Shares(Sizes):
    """Shares of one source of `data.mixture`; the others keep their proportions."""

    shares: tuple[float, ...] = setting((), gt=0, doc="shares of the source in the examples, below 1")
    source: int = setting(0, ge=0, doc="number of the source in `data.mixture`, from 0")

    def validate(self) -> None:
        if not self.shares:
            raise ValueError("shares: got an empty list, must hold at least one share")
        if max(self.shares) >= 1:
            raise ValueError(f"shares: got {max(self.shares):g}, must be < 1; a single source is no mixture")

    def variants(self, base: Base) -> list[Variant]:
        """Returns a variant for each size and share.

        Raises:
            UserError: the config has no mixture, or none with this source.
        """
        parts = base.config({}).to_dict()["data"]["mixture"]
        if len(parts) < 2 or self.source >= len(parts):
            raise UserError(
                f"study.generator.source: got {self.source}, must be the number of a source of data.mixture, which has "
                f"{len(parts)}"
            )
        rest = sum(part["weight"] for i, part in enumerate(parts) if i != self.source)
        out = []
        for size in self.sizes(base):
            for share in self.shares:
                mixture = [{**part, "weight": part["weight"] * (1 - share) / rest} for part in parts]
                mixture[self.source]["weight"] = share
                changes = self.ruled(base, {**size.changes, "data.mixture": mixture})
                out.append(Variant(changes, {**size.label, "share": share}))
        return out


def _words(label: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in label.items()) or "the size of the config"


def ratio_text(value: float) -> str:
    """Returns a number for names: 1e+09 as "1e9", 0.001 as "0.001"."""
    return f"{value:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-") if math.isfinite(value) else "nan"
