"""Names of training metrics for readers, their units, and their meanings."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ssljax.report.table import readable


class Metric(NamedTuple):
    """A metric for readers.

    Attributes:
        title: heading of its curve, with the unit if it has one.
        meaning: a line below the curves; "": the title says it.
    """

    title: str
    meaning: str = ""


COUNTERS = ("step", "examples", "tokens", "flops", "seconds", "energy_kwh", "skipped_steps")
SPEED = (
    "examples_per_second",
    "tokens_per_second",
    "model_flops_per_second",
    "mfu",
    "data_wait_share",
    "host_share",
    "device_memory_gb",
)

METRICS = {
    "learning_rate": Metric("learning rate"),
    "examples_per_second": Metric("examples / s"),
    "tokens_per_second": Metric("tokens / s", "with padding"),
    "model_flops_per_second": Metric("model FLOP / s", "three times the FLOPs of a forward pass, per second"),
    "mfu": Metric("MFU", "share of the peak FLOP rate of the devices that the model uses"),
    "data_wait_share": Metric("share of time without data", "share of time in which the loop waits for a batch"),
    "host_share": Metric(
        "share of time of the host", "share of time in which the loop waits neither for a batch nor for the devices"
    ),
    "device_memory_gb": Metric("device memory (GB)", "largest memory in use so far, on one device"),
    "gradient_noise_scale": Metric(
        "gradient noise scale (examples)",
        "critical batch size: with batches well below it, twice the batch halves the steps; a gap: the noise hides the "
        "gradient",
    ),
    "grad_norm": Metric("gradient norm", "norm over all parameters, before clipping"),
    "accuracy": Metric(
        "accuracy",
        "share of targets that the model predicts correctly, in training; of a contrastive loss, share of vectors to "
        "which their partner is more similar than all other examples of the batch",
    ),
    **{
        f"nll_{mode}": Metric(f"loss of mode {mode} (nats)", f"mean over written tokens of texts with {what}")
        for mode, what in {"R": "short spans", "S": "a hidden end", "X": "long or many spans"}.items()
    },
    "accuracy/order": Metric(
        "order of difficulties", "share of pairs of masked patches of which the one with the larger error is known"
    ),
    "nll_unigram": Metric(
        "loss of the colours' shares (nats)", "loss of a model that predicts each colour with its share of all pixels"
    ),
    "alignment": Metric(
        "alignment (squared distance)",
        "mean squared distance of two views of an example on the unit sphere; 0: equal",
    ),
    "uniformity": Metric(
        "uniformity (log potential)",
        "log of the mean of exp(-2 distance²) over pairs on the unit sphere; 0: collapsed, low: spread out",
    ),
    "mi_bound": Metric(
        "bound of the mutual information (nats)",
        "log of the number of parts that are compared, minus the loss: at most the information that the context has "
        "about a later part, and at most the log of the number",
    ),
    "feature_std": Metric(
        "feature std",
        "standard deviation over examples of a dimension of normalised features; 0: collapsed, 1/√D: spread out",
    ),
    "projection_std": Metric(
        "projection std",
        "standard deviation over examples of a dimension of normalised projections; 0: collapsed, 1/√D: spread out",
    ),
    "effective_rank": Metric(
        "effective rank (dimensions)",
        "exponential of the entropy of the singular values of the features; 1: collapsed",
    ),
    "teacher_entropy": Metric(
        "teacher entropy (nats)",
        "entropy of the targets; 0 or the log of the number of prototypes throughout: collapsed",
    ),
    "patch_entropy": Metric(
        "patch entropy (nats)",
        "entropy of the teacher at patches; 0 or the log of the number of prototypes throughout: collapsed",
    ),
    "neighbour_similarity": Metric("neighbour similarity", "cosine of a vector and its neighbour in the queue"),
    "invariance": Metric("invariance", "squared difference of the two views, mean over dimensions"),
    "variance": Metric("variance", "what dimensions lack to a standard deviation of 1; near 1: collapsed"),
    "covariance": Metric("covariance", "squared covariances of different dimensions, divided by their number"),
    "on_diagonal": Metric(
        "on the diagonal", "squared distance of the correlations of one dimension in two views from 1"
    ),
    "off_diagonal": Metric("off the diagonal", "squared correlations of different dimensions"),
    "hsic_zy": Metric("HSIC(Z, Y)", "dependence of vectors on the image that they come from"),
    "hsic_zz_root": Metric("root of HSIC(Z, Z)", "dependence of vectors on themselves, which the loss lowers"),
    "distance": Metric("distance", "squared distance of the views from their mean, mean over dimensions"),
    "sigreg": Metric("SIGReg", "distance of the distribution of projections from a standard normal one"),
    "assignment_entropy": Metric(
        "assignment entropy (nats)",
        "entropy of the mean assignment to prototypes; the log of their number: all are used alike",
    ),
    "mean_entropy": Metric(
        "mean entropy (nats)",
        "entropy of the mean prediction over prototypes; the log of their number: all are used alike",
    ),
    "cluster_entropy": Metric(
        "cluster entropy (nats)", "entropy of the sizes of the clusters; the log of their number: all have one size"
    ),
    "color_error": Metric("colour error", "distance of predicted and true colour in a and b of CIELAB"),
    "chroma": Metric("chroma", "mean colourfulness of predictions divided by that of the images; below 1: dull"),
    "confident": Metric("confident", "share of unlabelled images whose class is probable enough to be a label"),
    "agreement": Metric("agreement", "share of unlabelled images with one most probable class of student and teacher"),
    "absolute_error": Metric("absolute error", "mean distance of prediction and target, in the units of the target"),
    "target_std": Metric("target std", "standard deviation of the targets over the patches of an image; 0: collapsed"),
    "replaced_share": Metric(
        "replaced share", "share of tokens that the generator replaced; an accuracy of 1 minus it takes no skill"
    ),
    "logit_scale": Metric("logit scale", "factor of cosines in the loss"),
    "logit_bias": Metric("logit bias", "added to scaled cosines in the loss"),
    "expert_load": Metric(
        "expert load", "share of the busiest expert times the number of experts; 1: all are used alike"
    ),
}


def title(name: str) -> str:
    """Returns the heading of the curve of a logged number: `health/feature_std` -> `features: feature std`."""
    place, _, last = name.rpartition("/")
    if place == "health":
        return f"features: {title(last)}"
    known, _, module = name.partition("/")
    return METRICS[known].title + (f", {module}" if module else "") if known in METRICS else readable(name)


def meanings(names: Iterable[str]) -> list[str]:
    """Returns a line for each metric that is known to `METRICS`, once, in the order of the names.

    `health/...` metrics have a line on the features that they measure.
    """
    names = list(names)
    fixed = any(name.startswith("health/") for name in names)
    first = ["features: the pooled features of up to 256 examples of the first batch, which stay the same."] * fixed
    known = dict.fromkeys(name.removeprefix("health/").partition("/")[0] for name in names)
    found: list[Metric] = [METRICS[name] for name in known if name in METRICS]
    return [*first, *(f"{m.title.partition(' (')[0]}: {m.meaning}." for m in found if m.meaning)]


def numbers(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the numbers in lines of metrics.jsonl, without counters, in the order of appearance.

    A number that was never finite (null in all lines) is among them.
    """
    names = dict.fromkeys(name for line in lines for name, value in line.items() if not isinstance(value, str))
    return [name for name in names if name not in COUNTERS]
