"""Tables and pictures of the ablations in configs/ablations, from the runs of a store; writes docs/ablations.md.

    ssljax sweep --config configs/ablations/collapse.py --workdir runs/ablations
    python benchmarks/ablations.py collapse --store runs/ablations

The names are those of the ablations. `--print` changes no page. Pictures are docs/ablations/NAME.png.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from pages import fill, markdown
from studies import ledger

from ssljax import losses
from ssljax.config import build
from ssljax.data import synthetic
from ssljax.runs.assembly import assemble
from ssljax.runs.evaluation import make_evaluator
from ssljax.runs.trained import read_trained
from ssljax.scaling.table import Table, read

PAGE = pathlib.Path(__file__).parent.parent / "docs/ablations.md"
PICTURES = PAGE.parent / "ablations"
PROBE = "linear/accuracy"
OPERATIONS = {  # names of the operations of `augmentations`: the key that turns each on, and its value when it is off
    "crop": ("crop_scale", (1.0, 1.0)),
    "colour": ("augment.jitter", 0.0),
    "cutout": ("augment.cutout", 0.0),
    "noise": ("augment.noise", 0.0),
    "blur": ("augment.blur", 0.0),
    "rotate": ("augment.rotate", 0.0),
}


def groups(table: Table, *names: str) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
    """Yields the values of columns and the rows that have them, in the order of the table."""
    keys = list(zip(*(map(_plain, table.columns[name]) for name in names)))
    for key in dict.fromkeys(keys):
        yield key, np.array([i for i, other in enumerate(keys) if other == key])


def _plain(value: Any) -> Any:
    """A value that can be a key of a dictionary; a group of keys is "yes", None is "no"."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return "yes" if isinstance(value, dict) else "no" if value is None else value


def cell(values: np.ndarray, digits: int = 3) -> str:
    """Mean and, of several seeds, standard deviation."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def column(table: Table, name: str) -> np.ndarray:
    """The numbers of a column."""
    return np.array(table.columns[name], float)


def save(figure: Figure, name: str, words: str) -> str:
    """Writes a picture and returns its Markdown."""
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=110)
    return f"![{words}](ablations/{name}.png)"


def heat(axes: Any, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draws a matrix with its numbers; NaN stays empty."""
    axes.imshow(values, cmap="Blues")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color="white" if value > middle else "black")


def augmentations(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by the two operations on the views; the diagonal has single operations."""
    table, names = read(store / "augmentations"), list(OPERATIONS)
    accuracy, matrix = column(table, PROBE), np.full((len(names), len(names)), np.nan)
    for row, value in enumerate(accuracy):
        on = [
            i
            for i, (key, off) in enumerate(OPERATIONS.values())
            if _plain(table.columns[f"objective.augment.{key}"][row]) != off
        ]
        matrix[on[0], on[-1]] = matrix[on[-1], on[0]] = value
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    heat(figure.subplots(), matrix, names, names)
    body = [[name, *(f"{value:.3f}" for value in values)] for name, values in zip(names, matrix)]
    return [markdown(["accuracy", *names], body), save(figure, "augmentations", "accuracy by two operations")]


def temperature(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by batch size and temperature."""
    table = read(store / "temperature")
    found = {key: column(table, PROBE)[rows] for key, rows in groups(table, "batch_size", "objective.temperature")}
    batches, temperatures = (sorted({key[i] for key in found}) for i in (0, 1))
    matrix = np.array([[found[b, t].mean() for t in temperatures] for b in batches])
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    heat(axes, matrix, [str(b) for b in batches], [f"{t:g}" for t in temperatures])
    axes.set(xlabel="temperature", ylabel="batch size")
    body = [[str(b), *(cell(found[b, t]) for t in temperatures)] for b in batches]
    head = ["batch size \\ temperature", *(f"{t:g}" for t in temperatures)]
    return [markdown(head, body), save(figure, "temperature", "accuracy by batch size and temperature")]


def gaussian_bound(information: float, negatives: int, dimensions: int = 8, pairs: int = 4096) -> float:
    """log(K + 1) - InfoNCE of correlated Gaussians with the best critic, whose mutual information is known.

    x, y are N(0, 1) in each dimension with correlation r, so I = -d/2 log(1 - r^2). The logarithm of the density ratio
    is a product of (r x, 1) and (y, -r^2 |y|^2 / 2), divided by 1 - r^2, up to a function of x.

    Args:
        information: I(x; y) in nats.
        negatives: K, drawn from the marginal of y for each x.
    """
    r = np.sqrt(1 - np.exp(-2 * information / dimensions))
    rng, found = np.random.default_rng(0), []
    for _ in range(max(1, pairs // 512)):
        x, noise = rng.standard_normal((2, min(pairs, 512), dimensions))
        y, others = r * x + np.sqrt(1 - r**2) * noise, rng.standard_normal((negatives, dimensions))
        query = np.concatenate([r * x, np.ones_like(x[:, :1])], 1) / (1 - r**2)
        positive, shared = (
            np.concatenate([v, -(r**2) * np.square(v).sum(1, keepdims=True) / 2], 1) for v in (y, others)
        )
        logits = [np.sum(query * positive, 1, keepdims=True), query @ shared.T]
        values, _ = losses.cross_entropy(jnp.concatenate(logits, 1), jnp.zeros(len(x), jnp.int32), reduce=False)
        found.append(np.log(negatives + 1) - float(jnp.mean(values)))
    return float(np.mean(found))


def negatives(store: pathlib.Path) -> list[str]:
    """The bound on the mutual information of two views, and of Gaussians for which it is known."""
    table = read(store / "negatives")
    bound = np.log(column(table, "objective.queue") + 1) - column(table, "loss/loss")
    body, sizes, means = [], [], []
    for (size,), rows in groups(table, "objective.queue"):
        cells = (cell(column(table, "loss/loss")[rows]), cell(bound[rows]), cell(column(table, PROBE)[rows]))
        body.append([str(size), f"{np.log(size + 1):.3f}", *cells])
        sizes.append(size)
        means.append(bound[rows].mean())
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(sizes, np.log(np.array(sizes) + 1), "k--", label="log(K + 1)")
    left.plot(sizes, means, "o-", label="two views of a digit")
    counts = [4**i for i in range(7)]
    right.plot(counts, np.log(np.array(counts) + 1), "k--", label="log(K + 1)")
    for information in (1.0, 3.0, 6.0):
        line = right.plot(counts, [gaussian_bound(information, k) for k in counts], "o-", label=f"I = {information:g}")
        right.axhline(information, linestyle=":", color=line[0].get_color())
    for axes, title in ((left, "MoCo"), (right, "Gaussians, best critic")):
        axes.set(xscale="log", xlabel="negatives K", ylabel="log(K + 1) - loss, nats", title=title)
        axes.legend()
    head = ["negatives K", "log(K + 1)", "loss", "bound on I in nats", "linear probe: accuracy"]
    return [markdown(head, body), save(figure, "negatives", "bound on the mutual information by number of negatives")]


def mask_ratio(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by the hidden share, for images and for text, or for one of them until both are there."""
    figure, parts = Figure(figsize=(9, 3.6), layout="constrained"), []
    panels = (
        ("mask_ratio", "objective.mask_ratio", "MAE, CIFAR-10"),
        ("mask_ratio_text", "objective.rate", "BERT, news"),
    )
    panels = tuple(panel for panel in panels if (store / panel[0]).is_dir())
    for axes, (study, key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        table = read(store / study)
        found = {ratio: column(table, PROBE)[rows] for (ratio,), rows in groups(table, key)}
        mean, spread = (np.array([of(values) for values in found.values()]) for of in (np.mean, np.std))
        axes.errorbar(list(found), mean, spread, fmt="o-", capsize=3)
        axes.set(xlabel="hidden share", ylabel="accuracy of the probe", title=title)
        parts.append([title, *(cell(values) for values in found.values())])
    head = ["accuracy by hidden share", *(f"{ratio:g}" for ratio in found)]
    return [markdown(head, parts), save(figure, "mask_ratio", "accuracy by hidden share")]


def bars(name: str, words: str, table: Table, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """A table of metrics by the values of keys, and bars of the last metric."""
    found = {key: [column(table, metric)[rows] for metric in metrics] for key, rows in groups(table, *keys)}
    names = [key.removeprefix("objective.") for key in keys]
    labels = ["\n".join(f"{name}: {value}" for name, value in zip(names, key)) for key in found]
    last = [values[-1] for values in found.values()]
    figure = Figure(figsize=(6.5, 0.6 + 0.55 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.barh(labels, [v.mean() for v in last], xerr=[v.std() for v in last], color="tab:blue")
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of a linear probe")
    body = [[*map(str, key), *(cell(v) for v in values)] for key, values in found.items()]
    head = [*names, *metrics]
    return [markdown(head, body), save(figure, name, words)]


def targets(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by what masked patches predict."""
    keys = ("objective.target", "objective.error")
    return bars("targets", "accuracy by target", read(store / "targets"), keys, (PROBE,))


def masking(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by how hidden patches are chosen."""
    table = read(store / "masking")
    made = [{"scale": None, "grows": (), **value} for value in table.columns["objective.masking"]]
    kinds = {"random": "patches", "blocks": "small blocks", "parts": "a part"}
    names = ["one block" if m["scale"] else "growing blocks" if m["grows"] else kinds[m["name"]] for m in made]
    table = dataclasses.replace(table, columns={**table.columns, "hidden": names})
    return bars("masking", "accuracy by hidden patches", table, ("hidden",), (PROBE,))


def adversary(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by the share of hard patches among the masked ones."""
    table = read(store / "adversary")
    made = [{"share": 0.0, "grows": True, **(value or {})} for value in table.columns["objective.adversary"]]
    names = ["none" if not m["share"] else f"{'up to ' if m['grows'] else ''}{m['share']:.0%}" for m in made]
    table = dataclasses.replace(table, columns={**table.columns, "hard patches": names})
    return bars("adversary", "accuracy by hard patches", table, ("hard patches",), (PROBE,))


def spans(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by what is hidden together."""
    keys = ("objective.units", "objective.spans", "objective.boundary")
    return bars("spans", "accuracy by hidden units", read(store / "spans"), keys, (PROBE,))


def electra(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe by what the encoder predicts."""
    table = read(store / "electra")
    forms = [value.get("form", value["name"]) for value in table.columns["objective"]]
    table = dataclasses.replace(table, columns={**table.columns, "form": forms})
    return bars("electra", "accuracy by form", table, ("form", "steps"), (PROBE,))


def architecture(model: dict[str, Any], objective: dict[str, Any]) -> str:
    """The name of an architecture of `architectures`, of the groups of its config."""
    if model["name"] == "t5":
        half = ", half of the layers" if model["depth"] == 1 else ""
        return f"encoder-decoder{', one stack' if model.get('shared') else half}"
    causal = objective["name"] == "causal_lm" or not objective.get("bidirectional", True)
    return "language model" if causal else "prefix language model"


def architectures(store: pathlib.Path) -> list[str]:
    """Accuracy of the probe and held-out loss by architecture and objective."""
    table = read(store / "architectures")
    models, tasks = table.columns["model"], table.columns["objective"]
    names = ["denoising" if task["name"] == "span_corruption" else "language modelling" for task in tasks]
    named = {"architecture": [architecture(*cell) for cell in zip(models, tasks)], "objective": names}
    table = dataclasses.replace(table, columns={**table.columns, **named})
    found = dict(groups(table, "architecture", "objective"))
    rows, columns = (tuple(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, body = figure.subplots(), []
    for row in rows:
        own = [found.get((row, name), np.array([], int)) for name in columns]
        cells = [[cell(column(table, metric)[i]) if len(i) else "" for i in own] for metric in (PROBE, "loss/loss")]
        first = next(runs[0] for runs in own if len(runs))
        sizes = (f"{table.columns[size][first]:,}" for size in ("params", "params_non_embedding"))
        body.append([row, *sizes, *cells[0], *cells[1]])
    for i, name in enumerate(columns):
        there = [(y, column(table, PROBE)[found[row, name]]) for y, row in enumerate(rows) if (row, name) in found]
        places, values = zip(*there)
        places, spread = np.array(places) + 0.4 * i, [v.std() for v in values]
        axes.barh(places, [v.mean() for v in values], 0.4, xerr=spread, color=f"C{i}", label=name)
    axes.set_yticks(np.arange(len(rows)) + 0.2, rows)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of a linear probe")
    axes.legend()
    head = ["architecture", "parameters", "without embeddings"]
    head += [f"{metric}, {name}" for metric in ("accuracy", "loss") for name in columns]
    return [markdown(head, body), save(figure, "architectures", "accuracy by architecture and objective")]


def tested_on(workdir: pathlib.Path, pairs: str) -> float:
    """Accuracy of the model of a run on held-out pairs of segments, which it need not have been trained for."""
    trained = read_trained(workdir)
    values = {**trained.config, "objective": {**trained.config["objective"], "pairs": pairs}}
    assembly = assemble(build({**values, "evals": {"loss": trained.config["evals"]["loss"]}}))
    found = make_evaluator(assembly).run(trained.params, trained.extra)
    return found["loss"]["accuracy/pair"]


def pairs(store: pathlib.Path) -> list[str]:
    """Accuracy on both tasks, and of the probe, by the task of training."""
    table, tasks = read(store / "pairs"), ("next", "order")
    both = {
        f"accuracy of {task}": [tested_on(store / "pairs" / run, task) for run in table.columns["run"]]
        for task in tasks
    }
    table = dataclasses.replace(table, columns={**table.columns, **both})
    return bars("pairs", "accuracy by task of pairs", table, ("objective.pairs",), (*both, PROBE))


def collapse(store: pathlib.Path) -> list[str]:
    """Loss, spread of projections and accuracy with and without the parts that prevent collapse."""
    parts = []
    for study, other in (("collapse", "teacher"), ("collapse_simsiam", "stop_gradient")):
        keys = ("objective.predictor", f"objective.{other}")
        name = "BYOL" if study == "collapse" else "SimSiam"
        parts += [f"{name}:", *bars(study, f"accuracy of {name}", read(store / study), keys, COLLAPSE)]
    return parts


COLLAPSE = ("loss/loss", "loss/projection_std", PROBE)


def conditional_entropies(length: int) -> tuple[float, float]:
    """Nats per letter in windows of the chain of `builtin:markov`, by sums over all windows.

    Returns:
        (mean over letters 2 to `length` of the entropy given the letters before, mean over all letters of the entropy
        given all others).
    """
    chain, joint = synthetic.transitions(), synthetic.stationary()
    for _ in range(length - 2):
        joint = joint[..., None] * chain[(None,) * (joint.ndim - 2)]

    def entropy(p: np.ndarray) -> float:
        return float(-np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p))))

    whole, first = entropy(joint), entropy(joint.sum(tuple(range(1, length))))
    others = [whole - entropy(joint.sum(i)) for i in range(length)]
    return (whole - first) / (length - 1), float(np.mean(others))


def pseudo_likelihood(store: pathlib.Path) -> list[str]:
    """Nats per letter of causal and masked models, beside the exact sums."""
    causal, masked = read(store / "likelihood"), read(store / "pseudo_likelihood")
    exact_causal, exact_masked = conditional_entropies(5)
    nats = np.log(2) * column(masked, "pseudo_perplexity/pseudo_bits_per_byte")  # a letter is a byte
    own = np.log(2) * column(causal, "perplexity/bits_per_byte")
    body = [["causal model", "letters before", cell(own, 4), f"{exact_causal:.4f}"]]
    rates, means = [], []
    for (rate,), rows in groups(masked, "objective.rate"):
        body.append([f"masked model, rate {rate:g}", "all other letters", cell(nats[rows], 4), f"{exact_masked:.4f}"])
        rates.append(rate)
        means.append(nats[rows].mean())
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, means, "o-", label="masked models: pseudo-likelihood")
    axes.axhline(exact_masked, color="tab:blue", linestyle=":", label="exact, given all others")
    axes.axhline(own.mean(), color="tab:orange", label="causal model: likelihood")
    axes.axhline(exact_causal, color="tab:orange", linestyle=":", label="exact, given those before")
    axes.set(xlabel="hidden share in training", ylabel="nats per letter")
    axes.legend()
    head = ["model", "a letter given", "nats per letter", "exact"]
    return [markdown(head, body), save(figure, "pseudo_likelihood", "nats per letter by hidden share")]


# Ablation -> (its section, the studies that it reads).
ABLATIONS: dict[str, tuple[Callable[[pathlib.Path], list[str]], tuple[str, ...]]] = {
    "augmentations": (augmentations, ("augmentations",)),
    "temperature": (temperature, ("temperature",)),
    "negatives": (negatives, ("negatives",)),
    "mask_ratio": (mask_ratio, ("mask_ratio", "mask_ratio_text")),
    "targets": (targets, ("targets",)),
    "masking": (masking, ("masking",)),
    "adversary": (adversary, ("adversary",)),
    "spans": (spans, ("spans",)),
    "electra": (electra, ("electra",)),
    "architectures": (architectures, ("architectures",)),
    "pairs": (pairs, ("pairs",)),
    "collapse": (collapse, ("collapse", "collapse_simsiam")),
    "pseudo_likelihood": (pseudo_likelihood, ("pseudo_likelihood", "likelihood")),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", nargs="+", choices=list(ABLATIONS), help="names of ablations")
    parser.add_argument("--store", type=pathlib.Path, required=True, help="the store of their runs")
    parser.add_argument("--print", action="store_true", help="only print")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    for name in options.ablation:
        section, studies = ABLATIONS[name]
        there = {study: (options.store / study).is_dir() for study in studies}
        cost = "\n".join(
            f"`{study}`: {ledger(options.store, study) if there[study] else 'not trained yet.'}" for study in studies
        )
        text = "\n\n".join([cost, *section(options.store)])
        print(f"{name}\n\n{text}\n")
        if not options.print:
            fill(PAGE, f"benchmarks/ablations.py {name}", text)


if __name__ == "__main__":
    main()
