"""Fits of laws to tables of runs, and the results: parameters with intervals, predictions, the best next run."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, closest, nearest, shown
from ssljax.base.files import write_whole
from ssljax.base.schema import keys
from ssljax.scaling import bootstrap, cautions, forecast
from ssljax.scaling.bootstrap import interval
from ssljax.scaling.forecast import Forecast
from ssljax.scaling.laws import REGISTRY, create
from ssljax.scaling.laws.law import Columns, Law
from ssljax.scaling.table import Checked, checked, labels, numbers, read, renamed

FAR = 10.0  # predictions at sizes beyond the range of the table by more than this factor are warned of
TARGET = 10.0  # `next_run` asks about a budget larger by this factor than the run
CANDIDATES = 200
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.lower:.4g}, {self.upper:.4g}]"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted values [n] with intervals at `level`, and doubts about them."""

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    level: float
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NextRun:
    """A suggested run.

    Attributes:
        columns: its sizes, {name: value}.
        predicted: the predicted outcome, with its interval.
        quantity: the number that the run is chosen to make more certain.
        before, after: standard error of (the logarithm of) that number, now and expected with the run.
    """

    columns: dict[str, float]
    predicted: Interval
    quantity: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to a table.

    Attributes:
        law: name of the law.
        options: options of the law.
        parameters: {name: estimate}.
        derived: {name: estimate} of quantities that follow from the parameters.
        standard_errors: {name: standard deviation over the refits of `resample`}, of parameters and derived quantities.
        intervals: {kind of bootstrap: {name: (lower, upper)}}.
        resample: the kind whose intervals `predict` and `optimal` have: "cases", "clusters" or "residuals".
        level: level of the intervals.
        goodness: numbers that describe the residuals, see `ssljax.scaling.cautions.goodness`.
        condition: condition number of the covariance of the refits, over the coordinates of the search (logarithms of
            coefficients, exponents as they are).
        influence: [n], the largest change of a parameter if a row is left out, in standard errors of the other rows.
        forecasts: the leave-future-out table.
        warnings: doubts, one line each.
        samples: [R, P], the refits.
        columns: {name: [n]}, the inputs that were fitted.
        observed: [T n].
        rows: [n], numbers of the rows in the table.
        groups: [n], the group of each row for the clustered bootstrap; empty: none.
        source: name of the table.
        seed: of the bootstrap.
    """

    law: str
    options: dict[str, Any]
    parameters: dict[str, float]
    derived: dict[str, float]
    standard_errors: dict[str, float]
    intervals: dict[str, dict[str, tuple[float, float]]]
    resample: str
    level: float
    goodness: dict[str, float]
    condition: float
    influence: np.ndarray
    forecasts: tuple[Forecast, ...]
    warnings: tuple[str, ...]
    samples: np.ndarray
    columns: dict[str, np.ndarray]
    observed: np.ndarray
    rows: list[int]
    groups: list[str]
    source: str
    seed: int

    # ---- use

    @property
    def residuals(self) -> np.ndarray:
        """Residuals of the points, on the scale of the law: differences of logarithms, or of values."""
        at, values = self.points
        return self.rule.residuals(values, self.rule.predict(self.estimate, at))

    @property
    def points(self) -> tuple[Columns, np.ndarray]:
        """The inputs of the prediction and the values with which it is compared: rows, minima of parabolas, ..."""
        return self.rule.points(self.columns, self.observed)

    @property
    def rule(self) -> Law:
        """The law itself."""
        return create(self.law, self.options)

    @property
    def estimate(self) -> np.ndarray:
        """The parameters as an array [P]."""
        return np.array(list(self.parameters.values()))

    def predict(self, table: Any, level: float | None = None, observation: bool = False) -> Prediction:
        """Returns predictions at the rows of a table.

        Args:
            table: a mapping of columns (numbers or lists), or the path of a CSV file; only the inputs are read.
            level: of the intervals; None: that of the fit.
            observation: True: intervals of new observations, with their noise; False: of the law's values.

        Raises:
            UserError: a missing column, or a cell that is no number.
        """
        if isinstance(table, Mapping):
            table = {name: np.atleast_1d(values) for name, values in table.items()}
        given, level = read(table), self.level if level is None else level
        law = self.rule
        at = {name: numbers(given, name) for name in law.asked}
        for name, values in at.items():
            if not (values > 0).all() and name in self.columns and (self.columns[name] > 0).all():
                raise UserError(f"{given.source}: column {name!r} must be positive for a prediction")
        if observation:
            rng = np.random.default_rng(self.seed)
            arguments = (law, self.columns, self.observed, self.estimate, self.samples, at, level, self.resample, rng)
            lower, upper = forecast.observation_interval(*arguments)
        else:
            lower, upper = interval(law.predict(self.samples, at), self._quantiles(level))
        far = cautions.far(law, self.columns, at, FAR)
        return Prediction(law.predict(self.estimate, at), lower, upper, level, tuple(far))

    def optimal(self, flops: float, level: float | None = None, **given: float) -> dict[str, Interval]:
        """Returns the best run of a budget: {"params", "tokens", "loss"} with intervals.

        Args:
            flops: budget of the training, 6 params tokens.
            level: of the intervals; None: that of the fit.
            **given: further columns of the law (`unique_tokens` of data_constrained, ...).

        Raises:
            UserError: the law has no optimum, or `flops` is not positive.
        """
        if not flops > 0:
            raise UserError(f"flops: got {flops:g}, must be > 0")
        law = self.rule
        try:
            values, samples = law.optimal(self.estimate, flops, **given), law.optimal(self.samples, flops, **given)
        except NotImplementedError:
            raise UserError(f"{self.law}: has no optimal split of a budget (chinchilla and isoflop do)") from None
        low, high = {}, {}
        for name, drawn in samples.items():
            low[name], high[name] = interval(drawn, self._quantiles(self.level if level is None else level))
        return {name: Interval(float(v), float(low[name]), float(high[name])) for name, v in values.items()}

    def next_run(self, budget: float) -> NextRun:
        """Returns the run of a budget that is expected to teach most about a budget ten times as large.

        Each candidate's outcome correlates over the refits with the quantity in question: the best size at ten
        budgets for a law with an optimum, else the prediction there. For a quantity q and an outcome m with noise of
        variance s2 the variance of q falls by cov(q, m)^2 / (var(m) + s2), as in a Gaussian linear model (the
        criterion c of optimal design, Chaloner and Verdinelli 1995, section 2).

        Args:
            budget: training FLOPs of the run for laws of params and tokens; else the largest size of the run. For laws
                of optima it is the scale of a further group of runs, and the prediction is their best value.

        Raises:
            UserError: a budget that is not positive, or a law without a size.
        """
        if not budget > 0:
            raise UserError(f"budget: got {budget:g}, must be > 0")
        law = self.rule
        try:
            at = law.candidates(self.columns, budget, CANDIDATES)
        except NotImplementedError:
            raise UserError(f"{self.law}: suggests no next run, since it has no size that a budget limits") from None
        outcomes = _scaled(law, law.predict(self.samples, at))
        quantity, asked = self._asked(law, TARGET * budget)
        good = np.isfinite(outcomes).all(1) & np.isfinite(asked)
        outcomes, asked = outcomes[good] - outcomes[good].mean(0), asked[good] - asked[good].mean()
        noise = self.goodness["noise"] ** 2
        gain = (asked @ outcomes / len(asked)) ** 2 / ((outcomes**2).mean(0) + noise)
        best, before = int(np.argmax(gain)), float((asked**2).mean())
        columns = {name: float(values[best]) for name, values in at.items()}
        prediction = self.predict(columns, observation=True)
        predicted = Interval(*(float(v[0]) for v in (prediction.value, prediction.lower, prediction.upper)))
        after = float(np.sqrt(max(before - gain[best], 0.0)))
        return NextRun(columns, predicted, quantity, float(np.sqrt(before)), after)

    def _asked(self, law: Law, target: float) -> tuple[str, np.ndarray]:
        """The quantity that a next run shall make more certain: its name and its values [R] over the refits."""
        try:
            values = law.optimal(self.samples, target)
        except (NotImplementedError, TypeError):
            at = {name: np.array([v.max()]) for name, v in self.columns.items()}
            first = law.asked[0]
            at |= {first: np.array([target])}
            if {"params", "tokens"} <= set(law.asked):
                at |= {"params": np.sqrt([target / 120]), "tokens": np.sqrt([target * 120]) / 6}
            return f"{law.outputs[0].name} at {first} {target:.3g}", _scaled(law, law.predict(self.samples, at))[:, 0]
        with np.errstate(all="ignore"):
            return f"optimal params at {target:.3g} FLOPs", np.log(values["params"])

    def plot(self, path: str | os.PathLike) -> pathlib.Path:
        """Draws data and law, residuals, parameters and forecasts; PNG, SVG or PDF by the suffix. Returns the path."""
        from ssljax.scaling import plots

        return plots.draw(self, pathlib.Path(path))

    def page(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes an HTML page with interactive pictures and tables, which needs no network. Returns the path."""
        from ssljax.scaling import page

        return page.write_page(self, pathlib.Path(path))

    def _quantiles(self, level: float) -> tuple[float, float]:
        if not 0 < level < 1:
            raise UserError(f"level: got {level:g}, must be > 0 and < 1")
        return forecast.quantiles(self.rule, self.columns, level, self.resample, self.groups or None)

    # ---- files

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Returns the fit as JSON, with the data and the refits; writes it to `path` if given. NaN becomes null."""
        content = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        text = json.dumps({"format": FORMAT, **content}, allow_nan=False)
        if path is not None:
            write_whole(pathlib.Path(path), text)
        return text

    @classmethod
    def from_json(cls, text: str) -> "Fit":
        """Returns the fit of a text that `to_json` made.

        Raises:
            UserError: the text is not of this format.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise UserError(f"fit: is of another format than {FORMAT}")
            for name in ("influence", "samples", "observed"):
                content[name] = np.array(content[name], float)
            content["columns"] = {name: np.array(values, float) for name, values in content["columns"].items()}
            content["forecasts"] = tuple(Forecast(**_numbers(line)) for line in content["forecasts"])
            for name in ("parameters", "derived", "standard_errors", "goodness"):
                content[name] = _numbers(content[name])
            content["intervals"] = {
                kind: {name: (_number(low), _number(high)) for name, (low, high) in of.items()}
                for kind, of in content["intervals"].items()
            }
            content["condition"] = _number(content["condition"])
            content["warnings"] = tuple(content["warnings"])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"fit: is not the JSON of a fit ({error})") from error


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """The JSON form of a value; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value


def _scaled(law: Law, values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.log(values) if law.residual == "log" else values


# ---- the fit


def fit(
    law: str,
    table: Any,
    *,
    columns: Mapping[str, str] | None = None,
    cluster: str | None = None,
    order: str | None = None,
    resample: str | None = None,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    **options: Any,
) -> Fit:
    """Fits a law to a table of runs.

    Args:
        law: name of a law (`ssljax list laws`), or "package.module:Class".
        table: path of a CSV file with a header, a mapping {name: values}, a list of rows, or a data frame. Columns are
            found by name and further columns are ignored; units are units, not millions.
        columns: {name of the law: name in the table}, where they differ.
        cluster: the column whose groups are drawn by the clustered bootstrap; None: "run" or "budget" if the table has
            one of these with three groups or more.
        order: the column whose values separate past from future in the leave-future-out table; None: "budget", else
            the sizes.
        resample: the bootstrap of the reported intervals: "cases", "clusters" or "residuals"; None: the law's own.
        bootstrap: number of refits.
        level: level of the intervals.
        seed: of the bootstrap.
        **options: options of the law.

    Raises:
        UserError: a mistake in an argument or in the table.
    """
    rule = create(law, _options(law, options))
    given = renamed(read(table), columns or {})
    data = checked(given, rule)
    if not (isinstance(bootstrap, int) and bootstrap >= 20):
        raise UserError(f"bootstrap: got {shown(bootstrap)}, must be an integer >= 20")
    if not 0 < level < 1:
        raise UserError(f"level: got {level:g}, must be > 0 and < 1")
    groups = _groups(given, data, cluster)
    kinds = _kinds(rule, resample, groups)
    estimate = rule.estimate(data.columns, data.observed[None], np.ones((1, len(data.rows))))[0]
    if not np.isfinite(estimate).all():
        raise UserError(f"{given.source}: {law} has no estimate from these {len(data.rows)} rows")
    rng = np.random.default_rng(seed)
    samples = {kind: _bootstrap_refits(rule, data, estimate, kind, bootstrap, rng, groups) for kind in kinds}
    budgets = _order(given, data, order)
    return _result(rule, law, options, given.source, data, estimate, samples, groups, budgets, level, seed)


def _bootstrap_refits(
    rule: Law, data: Checked, estimate: np.ndarray, kind: str, repeats: int, rng: np.random.Generator, groups: list[str]
) -> np.ndarray:
    return bootstrap.refits(rule, data.columns, data.observed, estimate, kind, repeats, rng, groups or None)


def _options(law: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a law; a misspelled argument of `fit` is among them and is named here."""
    own = {"columns", "cluster", "order", "resample", "bootstrap", "level", "seed"}
    known = keys(REGISTRY.get(law, "law"))
    for key in options:
        if key not in known and not closest(key, known) and closest(key, own):
            raise UserError(f"{key}: unknown argument of fit{nearest(key, own)}")
    return dict(options)


def _groups(given: Any, data: Checked, cluster: str | None) -> list[str]:
    """The group [n] of each row for the clustered bootstrap; empty if there are none."""
    names = [cluster] if cluster is not None else [n for n in ("run", "budget") if n in given.columns]
    for name in names:
        values = labels(given, name)
        groups = [values[i] for i in data.kept]
        count = len(set(groups))
        if 3 <= count < len(groups):
            return groups
        if cluster is not None:
            raise UserError(f"cluster: column {name!r} has {count} groups in {len(groups)} rows, must have 3 or more")
    return []


def _kinds(rule: Law, resample: str | None, groups: list[str]) -> list[str]:
    """The kinds of bootstrap, the reported one first."""
    if resample is not None and resample not in bootstrap.KINDS:
        raise UserError(f"resample: got {shown(resample)}, must be one of {', '.join(bootstrap.KINDS)}")
    if resample == "clusters" and not groups:
        raise UserError("resample: 'clusters' needs a column of groups; name it as cluster")
    first = resample or rule.resample
    return list(dict.fromkeys([first, "cases", *(["clusters"] if groups else [])]))


def _order(given: Any, data: Checked, order: str | None) -> np.ndarray | None:
    if order is None and "budget" not in given.columns:
        return None
    values = numbers(given, order or "budget")[data.kept]
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UserError(f"order: column {order or 'budget'!r} must have positive numbers")
    return values


def _result(
    rule: Law,
    law: str,
    options: dict[str, Any],
    source: str,
    data: Checked,
    estimate: np.ndarray,
    samples: dict[str, np.ndarray],
    groups: list[str],
    budgets: np.ndarray | None,
    level: float,
    seed: int,
) -> Fit:
    names = [p.name for p in rule.parameters]
    resample = next(iter(samples))
    derived = {name: float(value) for name, value in rule.derived(estimate).items()}
    drawn = {kind: _named(rule, names, values) for kind, values in samples.items()}
    intervals = {}
    for kind, values in drawn.items():
        quantiles = forecast.quantiles(rule, data.columns, level, kind, groups or None)
        bounds = {name: interval(value, quantiles) for name, value in values.items()}
        intervals[kind] = {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
    errors = {name: float(np.nanstd(value)) for name, value in drawn[resample].items()}
    influence = cautions.influence(rule, data.columns, data.observed, estimate)
    past = forecast.groups_of(rule, data.columns, budgets)
    forecasts, missing = forecast.leave_future_out(rule, data.columns, data.observed, past, level, seed)
    condition = cautions.condition(rule, samples[resample])
    doubts = cautions.doubts(rule, data, estimate, samples[resample], influence, condition, level)
    return Fit(
        law=law,
        options=options,
        parameters=dict(zip(names, map(float, estimate))),
        derived=derived,
        standard_errors=errors,
        intervals=intervals,
        resample=resample,
        level=level,
        goodness=cautions.goodness(rule, data.columns, data.observed, estimate),
        condition=condition,
        influence=influence,
        forecasts=forecasts,
        warnings=(*data.notes, *doubts, *missing),
        samples=samples[resample],
        columns=data.columns,
        observed=data.observed,
        rows=data.rows,
        groups=groups,
        source=source,
        seed=seed,
    )


def _named(rule: Law, names: Sequence[str], samples: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters and derived quantities [R] of refits [R, P]."""
    return {**{name: samples[:, i] for i, name in enumerate(names)}, **rule.derived(samples)}
