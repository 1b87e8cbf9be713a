"""Tables and pictures of the studies in configs/scaling, from the runs of a store; writes docs/scaling.md.

    ssljax sweep --config configs/scaling/isoflop.py --workdir runs/scaling
    python benchmarks/studies.py isoflop --store runs/scaling

The names are those of the studies. `--print` changes no page. Pictures are docs/studies/NAME.png.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from pages import fill, markdown

from ssljax import objectives, scaling
from ssljax.config import build
from ssljax.data import synthetic
from ssljax.report.read import EVALUATIONS, read_lines
from ssljax.scaling.cost import Costs
from ssljax.scaling.forecast import observation_interval
from ssljax.scaling.listing import run_columns
from ssljax.scaling.table import Table, read
from ssljax.train.program import batch_shapes
from ssljax.train.state import abstract_variables, make_variables

PAGE = pathlib.Path(__file__).parent.parent / "docs/scaling.md"
PICTURES = PAGE.parent / "studies"
STANDARD = 3e-3  # learning rate of the study `kaplan` that stands for "not tuned"


def grid(table: Table, row: str, column: str, value: str, digits: int = 3) -> str:
    """Returns a value by two columns, means over what is equal in both; the best of a row is bold."""
    rows, columns, values = ([*table.columns[name]] for name in (row, column, value))
    heads = list(dict.fromkeys(columns))
    body = []
    for name in dict.fromkeys(rows):
        means = []
        for head in heads:
            own = [float(v) for r, c, v in zip(rows, columns, values) if (r, c) == (name, head)]
            means.append(float(np.mean(own)) if own else np.nan)
        cells = [("" if np.isnan(mean) else f"{mean:.{digits}f}") for mean in means]
        cells[int(np.nanargmin(means))] = f"**{cells[int(np.nanargmin(means))]}**"
        body.append([f"{name:.0e}" if isinstance(name, float) and name > 1e4 else str(name), *cells])
    return markdown([f"{row} \\ {column}", *map(str, heads)], body)


def parameters(fit: Any) -> str:
    """Returns the parameters of a fit with standard errors and intervals."""
    body = []
    for name, value in {**fit.parameters, **fit.derived}.items():
        low, high = fit.intervals[fit.resample][name]
        body.append([f"`{name}`", f"{value:.4g}", f"{fit.standard_errors[name]:.2g}", f"{low:.4g} to {high:.4g}"])
    return markdown([f"`{fit.law}`", "estimate", "standard error", f"{fit.level:.0%} interval"], body)


def doubts(fit: Any) -> str:
    """Returns residuals and warnings of a fit in lines."""
    good = fit.goodness
    lines = [f"Residuals of `{fit.law}`: rms {good['rmse']:.2%}, explained variance {good['r2']:.4f}."]
    return "\n".join([*lines, *(f"- {warning}" for warning in fit.warnings)])


def forecasts(fit: Any) -> str:
    """Returns the leave-future-out table of a fit."""
    body = []
    for line in fit.forecasts:
        quality = (f"{line.error:.2%}", f"{line.bias:+.2%}", f"{line.inside:.0%}")
        body.append([f"{line.upto:.3g}", str(line.fitted), f"{line.to:.3g}", *quality])
    head = ["fitted up to", "rows", "predicted", "rms error", "bias", f"inside the {fit.level:.0%} interval"]
    return markdown(head, body)


def best_of_the_largest(table: Table) -> str:
    """Returns the forecast of the least loss of the largest budget from the smaller budgets, by `chinchilla`."""
    budget, loss = (np.array(table.columns[name], float) for name in ("budget", "loss"))
    past = np.flatnonzero(budget < budget.max())
    best = min(np.flatnonzero(budget == budget.max()), key=lambda i: loss[i])
    smaller = {name: [table.columns[name][i] for i in past] for name in ("params", "tokens", "loss")}
    fit = scaling.fit("chinchilla", smaller, delta=None)
    at = {name: np.array([table.columns[name][best]], float) for name in ("params", "tokens")}
    estimate = np.array(list(fit.parameters.values()))
    rng = np.random.default_rng(0)
    low, high = observation_interval(
        fit.rule, fit.columns, fit.observed, estimate, fit.samples, at, fit.level, fit.resample, rng
    )
    predicted = float(fit.rule.predict(estimate, at)[0])
    inside = "inside" if low[0] <= loss[best] <= high[0] else "outside"
    return (
        f"Held out: fitted to the budgets below {budget.max():.0e}, `chinchilla` predicts {predicted:.4f} for the best "
        f"run of this budget, {fit.level:.0%} interval {low[0]:.4f} to {high[0]:.4f}; measured {loss[best]:.4f}: an "
        f"error of {predicted / loss[best] - 1:+.2%}, {inside} the interval."
    )


def ledger(store: pathlib.Path, study: str) -> str:
    """Returns one line on cost: runs, FLOPs, and time of the trainers."""
    columns = run_columns(store / study)
    hours = sum(columns["seconds"]) / 3600
    states = ", ".join(f"{columns['state'].count(state)} {state}" for state in dict.fromkeys(columns["state"]))
    return f"{states}; {sum(flops or 0 for flops in columns['flops']):.2g} FLOPs; {hours:.2f} hours of trainers."


def picture(fit: Any, name: str) -> str:
    fit.plot(PICTURES / f"{name}.png")
    return f"![{fit.law} of the study](studies/{name}.png)"


def isoflop(store: pathlib.Path) -> list[str]:
    table = read(store / "isoflop")
    fits = [scaling.fit(law, table, **options) for law, options in APPROACHES]
    parts = [grid(table, "budget", "params", "loss"), best_of_the_largest(table)]
    for fit in fits:
        parts += [parameters(fit), doubts(fit)]
    names = ("envelope", "parabolas", "parametric")
    return [*parts, forecasts(fits[-1]), *(picture(fit, f"isoflop_{name}") for fit, name in zip(fits[1:], names[1:]))]


def capability(store: pathlib.Path) -> list[str]:
    """Compute to loss to accuracy on the runs of `isoflop`, and best sizes when the model is used after training."""
    table = read(store / "isoflop")
    error = scaling.fit("downstream", table, columns={"error": "1-loss/accuracy"})
    parts = ["Error of the next byte from the loss:", parameters(error), doubts(error), forecasts(error)]
    budget = 10 * max(table.columns["budget"])
    body = []
    for used in (0.0, 1e7, 1e8):
        fit = scaling.fit("inference_aware", table, inference_tokens=used, bootstrap=200)
        best = fit.optimal(flops=budget)
        cells = [
            f"{best[name].value:.3g} ({best[name].lower:.3g} to {best[name].upper:.3g})"
            for name in ("params", "tokens")
        ]
        body.append([f"{used:.0e}" if used else "0", *cells])
    head = ["tokens of inference", "best parameters", "best tokens"]
    parts += [
        f"The best run of {budget:.0e} FLOPs, training and use together (`inference_aware`):",
        markdown(head, body),
    ]
    return [*parts, picture(error, "capability")]


APPROACHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chinchilla_envelope", {}),
    ("isoflop", {}),
    ("chinchilla", {"delta": None}),
)


def kept(store: pathlib.Path, study: str) -> Table:
    """Returns the table of a study whose `params` are those of the model that stays, without projector or decoder."""
    table, costs, sizes = read(store / study), Costs(), []
    for run in table.columns["run"]:
        config = build(json.loads((store / study / run / "config.json").read_text()))
        spec = costs.spec(config)
        objective = objectives.create({"objective": config.objective, "model": config.model}, spec)
        variables, _ = abstract_variables(make_variables(objective, batch_shapes(spec, config.batch_size)))
        model = objective.model_params(variables.params, variables.extra)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(model)))
    return Table({**table.columns, "params": sizes}, table.source, table.rows)


def surface(study: str, size: str = "tokens", loss: str | None = None) -> Callable[[pathlib.Path], list[str]]:
    """Returns the section of a study over sizes and lengths: losses, `chinchilla`, forecasts."""

    def section(store: pathlib.Path) -> list[str]:
        table = kept(store, study) if size == "examples" else read(store / study)
        given = {"tokens": size, **({"loss": loss} if loss else {})}
        fit = scaling.fit("chinchilla", table, columns=given, delta=None)
        shown = Table({**table.columns, "loss": list(fit.observed)}, table.source, table.rows)
        parts = [grid(shown, "params", size, "loss", 4), parameters(fit), doubts(fit), forecasts(fit)]
        return [*parts, picture(fit, study)]

    return section


def contrastive(store: pathlib.Path) -> list[str]:
    probe = surface("contrastive", "examples", "1-linear/accuracy")(store)
    table = kept(store, "contrastive")
    loss = scaling.fit("chinchilla", table, columns={"tokens": "examples"}, delta=None)
    own = [grid(table, "params", "examples", "loss"), parameters(loss), doubts(loss)]
    return ["Error of the linear probe:", *probe, "The contrastive loss, in batches of 128:", *own]


def mixture(store: pathlib.Path) -> list[str]:
    table = read(store / "mixture")
    share = np.array(table.columns["share"], float)
    losses = {name: np.array(table.columns[f"{name}/loss"], float) for name in ("code", "docs")}
    body = [[f"{q:g}", *(f"{loss[share == q].mean():.4f}" for loss in losses.values())] for q in np.unique(share)]
    parts = [markdown(["share of code", "loss on code", "loss on docs"], body)]
    for name, loss in losses.items():
        fit = scaling.fit("mixture", {"share": share if name == "code" else 1 - share, "loss": loss})
        parts += [f"Loss on `{name}` against its own share:", parameters(fit), doubts(fit)]
        parts.append(picture(fit, f"mixture_{name}"))
    return parts


def markov(store: pathlib.Path) -> list[str]:
    table, truth = read(store / "markov"), synthetic.floor(64)
    fit = scaling.fit("chinchilla", table, delta=None)
    low, high = fit.intervals[fit.resample]["E"]
    holds = "holds it" if low <= truth <= high else "does not hold it"
    line = (
        f"Entropy of the source: {truth:.4f} nats per symbol. Fitted E: {fit.parameters['E']:.4f}; the {fit.level:.0%} "
        f"interval, {low:.4f} to {high:.4f}, {holds}. Least loss of a run: {min(table.columns['loss']):.4f}."
    )
    return [line, *surface("markov")(store)]


def kaplan(store: pathlib.Path) -> list[str]:
    """The exponent of the best size by warm-up, learning rate, and what is counted."""
    table = read(store / "kaplan")
    columns = {name: np.array(values) for name, values in table.columns.items()}
    rate, warmup = columns["optimizer.learning_rate"].astype(float), columns["schedule.warmup"].astype(str)
    body = []
    for name in dict.fromkeys(warmup):
        own = warmup == name
        for tuning, rows in (
            (f"{STANDARD:g} for all sizes", np.flatnonzero(own & (rate == STANDARD))),
            ("best of three for each run", _tuned(columns, own)),
        ):
            body.append([name, tuning, *(_exponent(columns, rows, law, size) for law, size in COUNTS)])
    counted = {"params": "all parameters", "params_non_embedding": "without embeddings"}
    head = ["warm-up", "learning rate", *(f"`{law}`, {counted[size]}" for law, size in COUNTS)]
    best = _tuned(columns, np.full(len(rate), True))
    lowest = Table({name: list(values[best]) for name, values in columns.items()}, table.source, best.tolist())
    return [grid(lowest, "budget", "params", "loss"), "Exponent a of the best size, N_opt ~ C^a:", markdown(head, body)]


def sample_efficiency(store: pathlib.Path) -> list[str]:
    """Tokens that models of each size need for a loss, from the runs of `kaplan` with the best rates."""
    columns = {name: np.array(values) for name, values in read(store / "kaplan").columns.items()}
    best = _tuned(columns, columns["schedule.warmup"].astype(str) != "400")
    params, tokens, loss = (columns[name][best].astype(float) for name in ("params", "tokens", "loss"))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, body = figure.subplots(), []
    needed = np.array(
        [[_needed(tokens[params == n], loss[params == n], to) for to in TARGETS] for n in np.unique(params)]
    )
    for to, own in zip(TARGETS, needed.T):
        axes.plot(np.unique(params), own, "o-", label=f"loss {to}")
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens")
    axes.legend()
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "sample_efficiency.png", dpi=110)
    for n, own in zip(np.unique(params), needed):
        body.append([f"{n:,.0f}", *("" if np.isnan(x) else f"{x:,.0f}" for x in own)])
    head = ["parameters", *(f"tokens to a loss of {to}" for to in TARGETS)]
    return [markdown(head, body), "![tokens to a loss by size](studies/sample_efficiency.png)"]


TARGETS = (2.05, 2.0, 1.9, 1.8)  # held-out losses that several sizes reach


def _needed(tokens: np.ndarray, loss: np.ndarray, target: float) -> float:
    """Returns the number of tokens of a run that ends at a loss, between the runs of a size; NaN outside of them."""
    order = np.argsort(loss)
    if not loss[order[0]] <= target <= loss[order[-1]]:
        return float("nan")
    return float(np.exp(np.interp(target, loss[order], np.log(tokens[order]))))


def experts(store: pathlib.Path) -> list[str]:
    """Loss by the number of experts, beside dense models of equal FLOPs and of equal parameters."""
    table = read(store / "experts")
    names = []
    for value, width in zip(table.columns["model.experts"], table.columns["model.mlp_dim"]):
        names.append(f"{value['count']} experts" if value else f"dense, feed-forward part of {width}")
    loss, body = np.array(table.columns["loss"], float), []
    for name in dict.fromkeys(names):
        rows = [i for i, own in enumerate(names) if own == name]
        first, spread = rows[0], f" ± {loss[rows].std(ddof=1):.3f}" if len(rows) > 1 else ""
        size, flops = (float(table.columns[key][first]) for key in ("params", "flops"))
        body.append([name, f"{size:,.0f}", f"{flops:.3g}", f"{loss[rows].mean():.3f}{spread}"])
    return [markdown(["model", "parameters", "FLOPs", "loss"], body)]


COUNTS = (("isoflop", "params"), ("chinchilla", "params"), ("chinchilla", "params_non_embedding"))


def _tuned(columns: dict[str, np.ndarray], own: np.ndarray) -> np.ndarray:
    """Returns the rows with the best learning rate of each budget and size."""
    best: dict[tuple[float, int], int] = {}
    for i in np.flatnonzero(own):
        key = (columns["budget"][i], columns["params"][i])
        if key not in best or columns["loss"][i] < columns["loss"][best[key]]:
            best[key] = i
    return np.array(list(best.values()))


def _exponent(columns: dict[str, np.ndarray], rows: np.ndarray, law: str, size: str) -> str:
    names = {"params": size, "tokens": "tokens", "budget": "budget", "loss": "loss"}
    given = {name: columns[own][rows].astype(float) for name, own in names.items()}
    fit = scaling.fit(law, given, **({"delta": None} if law == "chinchilla" else {}))
    name = "a" if law == "isoflop" else "params_exponent"
    low, high = fit.intervals[fit.resample][name]
    return f"{ {**fit.parameters, **fit.derived}[name]:.2f} ({low:.2f} to {high:.2f})"


def transfer(store: pathlib.Path) -> list[str]:
    """Loss against the learning rate by width, with muP and with the standard parametrisation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    parts = []
    for axes, (study, title) in zip(figure.subplots(1, 2, sharey=True), PARAMETRISATIONS):
        table = read(store / study)
        columns = {name: np.array(table.columns[name]) for name in ("model.width", "optimizer.learning_rate", "loss")}
        body = []
        for width in dict.fromkeys(columns["model.width"]):
            rows = np.flatnonzero(columns["model.width"] == width)
            rows = rows[np.argsort(columns["optimizer.learning_rate"][rows])]
            rates, losses = (columns[name][rows].astype(float) for name in ("optimizer.learning_rate", "loss"))
            axes.plot(rates, losses, ".-", label=f"width {width}")
            at = np.log2(rates[np.argmin(losses)])
            body.append([str(width), *(f"{value:.3f}" for value in losses), f"2^{at:.0f}"])
        axes.set(xscale="log", xlabel="learning rate", title=title)
        axes.legend()
        head = ["width", *(f"2^{np.log2(value):.0f}" for value in rates), "best"]
        parts += [f"{title}:", markdown(head, body)]
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "transfer.png", dpi=110)
    return [*parts, "![loss against learning rate](studies/transfer.png)"]


def means(table: Table, by: str, columns: Sequence[str], digits: int = 4) -> str:
    """Returns means and, with several seeds, standard deviations of columns by the values of another one."""
    at = np.array(table.columns[by], float)
    body = []
    for value in np.unique(at):
        cells = []
        for name in columns:
            own = np.array(table.columns[name], float)[at == value]
            spread = f" ± {own.std(ddof=1):.{digits}f}" if len(own) > 1 else ""
            cells.append(f"{own.mean():.{digits}f}{spread}")
        body.append([f"{value:,.0f}", *cells])
    return markdown([by, *columns], body)


def along(store: pathlib.Path, study: str, metrics: Sequence[str]) -> tuple[list[int], dict[str, np.ndarray]]:
    """Returns the steps of the evaluation `loss` along the runs of a study, and {metric: [runs, steps]}."""
    curves = []
    for name in run_columns(store / study)["run"]:
        lines = read_lines(store / study / name / "evals.jsonl", EVALUATIONS)
        curves.append({x["step"]: x["metrics"] for x in lines if x["of"] == "trained" and x["eval"] == "loss"})
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, {name: np.array([[curve[step][name] for step in steps] for curve in curves]) for name in metrics}


def emergence(store: pathlib.Path) -> list[str]:
    """The loss and the share of exact sums by steps."""
    steps, found = along(store, "emergence", ("loss", "accuracy", "exact_5"))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "exact_5")):
        axes.plot(steps, found[name].T)
        axes.set(xlabel="step", ylabel=name)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "emergence.png", dpi=110)
    shown = [i for i, step in enumerate(steps) if step % 300 == 0]
    body = [
        [str(steps[i]), *(", ".join(f"{run[i]:.3f}" for run in found[name]) for name in ("loss", "exact_5"))]
        for i in shown
    ]
    head = ["step", "loss in nats, by seed", "exact sums, by seed"]
    return [markdown(head, body), "![loss and exact sums](studies/emergence.png)"]


def grokking(store: pathlib.Path) -> list[str]:
    """Accuracy on training pairs and on others by steps, with weight decay and without."""
    found: dict[tuple[float, str], list[dict[int, float]]] = {}
    columns = run_columns(store / "grokking")
    for name, decay in zip(columns["run"], columns["optimizer.weight_decay"]):
        curves: dict[str, dict[int, float]] = {"train": {}, "test": {}}
        for line in read_lines(store / "grokking" / name / "evals.jsonl", EVALUATIONS):
            if line["of"] == "trained":
                curves[line["eval"]][line["step"]] = line["metrics"]["accuracy"]
        for split, curve in curves.items():
            found.setdefault((decay, split), []).append(curve)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, body = figure.subplots(), []
    for (decay, split), runs in found.items():
        steps = sorted(set.intersection(*(set(curve) for curve in runs)))
        values = np.array([[curve[step] for step in steps] for curve in runs])
        axes.plot(steps, values.mean(0), "--" if split == "train" else "-", label=f"weight decay {decay:g}, {split}")
        known = [next((step for step in steps if curve[step] >= KNOWN), None) for curve in runs]
        ends = ", ".join(f"{value:.3f}" for value in values[:, -1])
        body.append([f"{decay:g}", split, ", ".join("never" if k is None else f"{k}" for k in known), ends])
    axes.set(xlabel="step", ylabel="accuracy")
    axes.legend()
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "grokking.png", dpi=110)
    head = ["weight decay", "pairs", f"step with {KNOWN:.0%}, by seed", "accuracy at the end, by seed"]
    return [markdown(head, body), "![accuracy by steps](studies/grokking.png)"]


KNOWN = 0.95


def learning_curves(store: pathlib.Path) -> list[str]:
    """Error by the number of labels, with the laws of three papers."""
    table = read(store / "learning_curves")
    size = np.array(table.columns["unique_examples"], float)
    test, train = (1 - np.array(table.columns[f"{name}/accuracy"], float) for name in ("test", "train"))
    found = {
        "test error": test,
        "train error": train,
        "gap": test - train,
        "gap x sqrt(labels)": (test - train) * size**0.5,
    }
    errors = Table({"labels": list(size), **{name: list(values) for name, values in found.items()}}, "", table.rows)
    parts = [means(errors, "labels", list(found))]
    for law, loss, options in CURVES:
        values = {"loss": test} if loss == "error" else {"accuracy": 1 - test}
        fit = scaling.fit(law, {"labels": size, **values}, x="labels", **options)
        parts += [f"`{law}` of the {loss} on the test set:", parameters(fit), doubts(fit), forecasts(fit)]
        parts.append(picture(fit, f"learning_curves_{law}"))
    return parts


CURVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("power_offset", "error", {}),
    ("broken", "error", {}),
    ("log_linear", "accuracy", {}),
)


def repeated(store: pathlib.Path) -> list[str]:
    """Loss by tokens and by different ones among them."""
    table = read(store / "repeated_data")
    fit = scaling.fit("data_constrained", table)
    once = scaling.fit("chinchilla", table, delta=None)
    largest = np.flatnonzero(np.array(table.columns["params"]) == max(table.columns["params"]))
    shown = Table({k: [v[i] for i in largest] for k, v in table.columns.items()}, table.source, largest.tolist())
    parts = ["The largest size:", grid(shown, "data.split", "tokens", "loss", 4), parameters(fit), doubts(fit)]
    return [*parts, "Without regard to repetition:", doubts(once), picture(fit, "repeated_data")]


PARAMETRISATIONS = (("transfer", "muP"), ("standard", "standard parametrisation"))

STUDIES: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "isoflop": isoflop,
    "capability": capability,
    "markov": markov,
    "masked_images": surface("masked_images", "examples"),
    "contrastive": contrastive,
    "mixture": mixture,
    "kaplan": kaplan,
    "sample_efficiency": sample_efficiency,
    "experts": experts,
    "transfer": transfer,
    "emergence": emergence,
    "grokking": grokking,
    "learning_curves": learning_curves,
    "repeated_data": repeated,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", choices=list(STUDIES), help="names of studies")
    parser.add_argument("--store", type=pathlib.Path, required=True, help="the store of their runs")
    parser.add_argument("--print", action="store_true", help="only print")
    options = parser.parse_args(arguments)
    for name in options.study:
        runs = {"capability": "isoflop", "sample_efficiency": "kaplan"}.get(name, name)
        text = "\n\n".join([ledger(options.store, runs), *STUDIES[name](options.store)])
        print(f"{name}\n\n{text}\n")
        if not options.print:
            fill(PAGE, f"benchmarks/studies.py {name}", text)


if __name__ == "__main__":
    main()
