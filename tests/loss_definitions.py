"""Definitions of losses in float64, one example at a time, and the table that pairs them with `ssljax.losses`.

The first losses of the table are defined in `test_losses_brute_force.py`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np

from ssljax import losses

N = 5


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def unit(x):
    return x / np.linalg.norm(x)


def weighted_mean(values, w):
    return sum(v * wi for v, wi in zip(values, w) if wi > 0) / sum(w)


@dataclasses.dataclass(eq=False)
class Case:
    name: str
    loss: Callable  # the loss: (*arrays, weights=...)
    brute: Callable  # the definition: (*arrays, w)
    arrays: Callable  # rng -> arrays of N rows; the first `learned` of them have gradients
    learned: int = 1
    shared: tuple[int, ...] = ()  # positions of arguments without an example axis
    per_example: bool = True
    fixed: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name


def normal(*shapes):
    return lambda rng: [rng.normal(size=s) for s in shapes]


def present(w):
    return [i for i in range(len(w)) if w[i] > 0]


# --- contrastive ------------------------------------------------------------------------------------------------------


def decoupled(z1, z2, w, t, weighted, sigma=0.5):
    real, values = present(w), np.zeros(len(w))
    views = (z1, z2)
    cosines = {i: unit(z1[i]) @ unit(z2[i]) for i in real}
    mean = sum(w[i] * np.exp(cosines[i] / sigma) for i in real) / sum(w)
    for i in real:
        factor = 2 - np.exp(cosines[i] / sigma) / mean if weighted else 1
        for v in (0, 1):
            others = [unit(views[v][i]) @ unit(views[u][k]) / t for k in real if k != i for u in (0, 1)]
            values[i] += (np.log(np.exp(others).sum()) - factor * cosines[i] / t) / 2
    return values


def info_nce(q, k, w, t, shared=None, normalize=True, positive=True):
    prepared = unit if normalize else lambda x: x
    real, values = present(w), np.zeros(len(w))
    for i in real:
        own = prepared(q[i]) @ prepared(k[i]) / t
        against = [k[j] for j in real if j != i] if shared is None else shared
        logits = [prepared(q[i]) @ prepared(n) / t for n in against] + [own] * positive
        values[i] = np.log(np.exp(logits).sum()) - own
    return values


def simcse(z1, z2, w, t, hard=None, hard_weight=0.0, symmetric=False):
    real, values = present(w), np.zeros(len(w))
    for i in real:
        for a, b in ((z1, z2), (z2, z1))[: 1 + symmetric]:
            logits = [unit(a[i]) @ unit(b[j]) / t for j in real]
            if hard is not None:
                logits += [unit(a[i]) @ unit(hard[j]) / t + (hard_weight if i == j else 0) for j in real]
            own = unit(a[i]) @ unit(b[i]) / t
            values[i] += (np.log(np.exp(logits).sum()) - own) / (1 + symmetric)
    return values


# --- labels and pairs -------------------------------------------------------------------------------------------------


def labelled(*more):
    return lambda rng: [rng.normal(size=(N, 3)), np.array([0, 1, 0, 1, 1]), *more]


def sup_con(z, labels, w, t, form, base=None):
    real, total, mass = present(w), 0.0, 0.0
    for i in real:
        others = [a for a in real if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        share = {a: np.exp(unit(z[i]) @ unit(z[a]) / t) for a in others}
        chances = [share[p] / sum(share.values()) for p in positives]
        value = -np.mean(np.log(chances)) if form == "out" else -np.log(np.mean(chances))
        total, mass = total + w[i] * value * (t / base if base else 1), mass + w[i]
    return total / mass


def contrastive_pairs(z, labels, w, margin, squared):
    real, total, mass = present(w), 0.0, 0.0
    for i in real:
        pairs = []
        for j in real:
            d = np.linalg.norm(z[i] - z[j])
            value = d if labels[i] == labels[j] else max(0, margin - d)
            pairs += [value**2 if squared else value] if i != j else []
        total, mass = total + w[i] * np.mean(pairs), mass + w[i]
    return total / mass


def triplet(z, labels, w, mining="all", squared=True, soft=False, reduction="mean", normalize=True, margin=0.2):
    real = present(w)
    x = {i: unit(z[i]) if normalize else z[i] for i in real}
    d = {(i, j): np.linalg.norm(x[i] - x[j]) ** (2 if squared else 1) for i in real for j in real}
    found = []  # (weight, difference)
    for a in real:
        ps = [p for p in real if p != a and labels[p] == labels[a]]
        ns = [n for n in real if labels[n] != labels[a]]
        if not ps or not ns:
            continue
        if mining == "all":
            found += [(w[a], d[a, p] - d[a, n]) for p in ps for n in ns]
        elif mining == "hard":
            found.append((w[a], max(d[a, p] for p in ps) - min(d[a, n] for n in ns)))
        else:
            for p in ps:
                beyond = [d[a, n] for n in ns if d[a, n] > d[a, p]]
                found.append((w[a], d[a, p] - (min(beyond) if beyond else max(d[a, n] for n in ns))))
    values = [(wi, np.log1p(np.exp(x)) if soft else max(0, x + margin)) for wi, x in found]
    total = sum(wi * v for wi, v in values)
    counted = sum(wi for wi, v in values if reduction != "nonzero" or v > 0)
    return total if reduction == "sum" else total / counted if counted else 0.0


def n_pair(a, p, w, l2):
    real, values = present(w), np.zeros(len(w))
    for i in real:
        others = sum(np.exp(a[i] @ p[j] - a[i] @ p[i]) for j in real if j != i)
        values[i] = np.log(1 + others) + l2 * (a[i] @ a[i] + p[i] @ p[i])
    return values


def nce(data, noise, q_data, q_noise, w):
    k, values = noise.shape[1], []
    for i in range(len(data)):
        h = lambda s, q: np.exp(s) / (np.exp(s) + k * np.exp(q))  # noqa: E731
        values.append(-np.log(h(data[i], q_data[i])) - sum(np.log(1 - h(s, q)) for s, q in zip(noise[i], q_noise[i])))
    return values


# --- statistics of the batch ------------------------------------------------------------------------------------------


def moments(z, w):
    mean = sum(wi * x for wi, x in zip(w, z)) / sum(w)
    return mean, sum(wi * np.outer(x - mean, x - mean) for wi, x in zip(w, z))


def barlow_twins(z1, z2, w, offdiag=5e-3, scale=1.0):
    standard = []
    for z in (z1, z2):
        mean, scatter = moments(z, w)
        standard.append((z - mean) / np.sqrt(np.diag(scatter) / sum(w) + 1e-5))
    c = sum(wi * np.outer(a, b) for wi, a, b in zip(w, *standard)) / sum(w)
    total = 0.0
    for d, e in itertools.product(range(len(c)), repeat=2):
        total += (1 - c[d, e]) ** 2 if d == e else offdiag * c[d, e] ** 2
    return scale * total


def vicreg(z1, z2, w, halve, sim=25.0, var=25.0, cov=1.0):
    dims = z1.shape[1]
    loss = sim * weighted_mean([((a - b) ** 2).mean() for a, b in zip(z1, z2)], w)
    for z in (z1, z2):
        covariance = moments(z, w)[1] / (sum(w) - 1)
        hinge = np.mean([max(0, 1 - np.sqrt(v + 1e-4)) for v in np.diag(covariance)])
        off = sum(covariance[d, e] ** 2 for d in range(dims) for e in range(dims) if d != e) / dims
        loss += var * hinge / (2 if halve else 1) + cov * off
    return loss


def koleo(z, w):
    real, values = present(w), np.zeros(len(w))
    for i in real:
        values[i] = -np.log(min(np.linalg.norm(unit(z[i]) - unit(z[j])) for j in real if j != i) + 1e-8)
    return values


def hsic(z, w, gamma=3.0, c=1.0):
    views = [(i, wi / sum(w) / z.shape[1], unit(x)) for i, wi in enumerate(w) for x in z[i]]
    k = lambda a, b: c / np.sqrt(c**2 + ((a - b) ** 2).sum())  # noqa: E731
    n, v = len(views), z.shape[1]
    matrix = np.array([[k(a[2], b[2]) for b in views] for a in views])
    share = np.array([x[1] for x in views])
    alike = sum(
        share[i] * matrix[i, j] / (v - 1) for i in range(n) for j in range(n) if i != j and views[i][0] == views[j][0]
    )
    everywhere = share @ matrix @ share
    h = np.eye(n) - np.outer(np.ones(n), share)
    centred = h @ matrix @ h.T
    return -(alike - everywhere) + gamma * np.sqrt((np.outer(share, share) * centred**2).sum())


def sigreg(z, directions, w):
    t = np.linspace(-5, 5, 17)
    total = 0.0
    for a in directions.T:
        x = z @ unit(a)
        characteristic = sum(wi * np.exp(1j * t * xi) for wi, xi in zip(w, x)) / sum(w)
        y = abs(characteristic - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        total += sum(w) * sum((y[1:] + y[:-1]) / 2 * (t[1] - t[0]))
    return total / directions.shape[1]


# --- predictions of another view --------------------------------------------------------------------------------------


def byol(p, z, w):
    return [((unit(a) - unit(b)) ** 2).sum() for a, b in zip(p, z)]


def dino(student, teacher, centre, w, ts, tt, skip):
    values = []
    for s_views, t_views in zip(student, teacher):
        pairs = [
            -(softmax((t - centre) / tt) * log_softmax(s / ts)).sum()
            for a, t in enumerate(t_views)
            for b, s in enumerate(s_views)
            if not (skip and a == b)
        ]
        values.append(np.mean(pairs))
    return values


def ibot(student, teacher, mask, centre, w, ts, tt):
    values = []
    for s, t, m in zip(student, teacher, mask):
        at = [-(softmax((t[p] - centre) / tt) * log_softmax(s[p] / ts)).sum() for p in range(len(m)) if m[p]]
        values.append(np.mean(at) if at else 0.0)
    return values


def sinkhorn(scores, w, epsilon, iterations):
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        q = q / (w[:, None] * q).sum(0)
        q = q / q.sum(1, keepdims=True)
    return q


def assignments(scores, w, iterations=3, queue=None, queue_weights=None):
    """[N, G, K] of scores [N, G, K]; the queue is [Q, G, K]."""
    out = np.zeros_like(scores)
    for g in range(scores.shape[1]):
        rows, weights = scores[:, g], np.asarray(w, float)
        if iterations == 0:
            out[:, g] = [softmax(row / 0.5) for row in rows]
            continue
        if queue is not None:
            rows, weights = np.concatenate([rows, queue[:, g]]), np.concatenate([weights, queue_weights])
        out[:, g] = sinkhorn(rows, weights, 0.5, iterations)[: len(scores)]
    return out


def swapped(large, small, target, w, t):
    values = []
    for g_views, l_views, a_views in zip(large, small, target):
        views = [*g_views, *l_views]
        pairs = [-(q * log_softmax(s / t)).sum() for a, q in enumerate(a_views) for b, s in enumerate(views) if a != b]
        values.append(np.mean(pairs))
    return values


# --- reconstruction and numbers ---------------------------------------------------------------------------------------


def masked_patches(images, pred, mask, w, normalize):
    values = []
    for image, p, m in zip(images, pred, mask):
        at = []
        for i in range(len(m)):
            row, column = divmod(i, 2)
            target = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            if normalize:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            at += [((p[i] - target) ** 2).mean()] if m[i] else []
        values.append(np.mean(at))
    return values


def elementwise(function):
    return lambda p, t, w: [np.mean([function(a - b) for a, b in zip(x.ravel(), y.ravel())]) for x, y in zip(p, t)]


def huber(delta):
    return lambda e: e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)


def gaussian_nll(mean, logvar, target, w):
    density = np.exp(-((target - mean) ** 2) / np.exp(logvar) / 2) / np.sqrt(2 * np.pi * np.exp(logvar))
    return -np.log(density).sum(-1) - mean.shape[1] * np.log(2 * np.pi) / 2


def vae_kl(mean, logvar, w):
    """By numerical integration of q log(q / p)."""
    x = np.linspace(-30, 30, 20001)
    values = []
    for ms, vs in zip(mean, logvar):
        total = 0.0
        for m, v in zip(ms, vs):
            log_q = -((x - m) ** 2) / np.exp(v) / 2 - (np.log(2 * np.pi) + v) / 2
            log_p = -(x**2) / 2 - np.log(2 * np.pi) / 2
            total += np.trapezoid(np.exp(log_q) * (log_q - log_p), x)
        values.append(total)
    return values


# --- targets that are predictions -------------------------------------------------------------------------------------


def distillation(student, teacher, w, t, scale):
    values = []
    for s, q in zip(student, teacher):
        p = softmax(q / t)
        values.append((p * (np.log(p) - log_softmax(s / t))).sum() * (t**2 if scale else 1))
    return values


def fixmatch(strong, weak, w, threshold):
    return [-log_softmax(s)[np.argmax(q)] if softmax(q).max() >= threshold else 0.0 for s, q in zip(strong, weak)]


def mean_teacher(student, teacher, w):
    return [((softmax(s) - softmax(t)) ** 2).mean() for s, t in zip(student, teacher)]


def deep_cluster(logits, clusters, sizes, w):
    w = [wi / sizes[c] for wi, c in zip(w, clusters)]
    return weighted_mean([-log_softmax(x)[c] for x, c in zip(logits, clusters)], w)


def binary(logit, label):
    p = 1 / (1 + np.exp(-logit))
    return -label * np.log(p) - (1 - label) * np.log(1 - p)


def electra(logits, replaced, mask, w):
    tokens = [(w[i], binary(logits[i, j], replaced[i, j])) for i, j in zip(*np.nonzero(mask)) if w[i] > 0]
    return sum(wi * v for wi, v in tokens) / sum(wi for wi, _ in tokens)


def token_cross_entropy(logits, labels, w, reduction="token", smoothing=0.0, z_loss=0.0):
    texts = []
    for text, row in zip(logits, labels):
        values = []
        for x, label in zip(text, row):
            if label != -100:
                target = (1 - smoothing) * np.eye(len(x))[label] + smoothing / len(x)
                values.append(-(target * log_softmax(x)).sum() + z_loss * np.log(np.exp(x).sum()) ** 2)
        texts.append(values)
    if reduction == "example":
        kept = [i for i in present(w) if texts[i]]
        return sum(w[i] * np.mean(texts[i]) for i in kept) / sum(w[i] for i in kept)
    return sum(w[i] * sum(texts[i]) for i in present(w)) / sum(w[i] * len(texts[i]) for i in present(w))


# --- table ------------------------------------------------------------------------------------------------------------

MASK = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]])
LABELS = np.array([[0, 3, -100], [1, 1, 1], [-100, -100, -100], [2, -100, 0], [3, 0, 1]])


def views_first(function):
    """A loss of arrays [V, N, K] as one of arrays [N, V, K]; arrays of other ranks stay."""
    return lambda *a, **k: function(*(jnp.swapaxes(x, 0, 1) if x.ndim == 3 else x for x in a), **k)


def pair_case(name, brute, learned=2, loss=None, arrays=None, **options):
    suffix = "".join(f" {k}={v}" for k, v in options.items())
    loss = loss or partial(getattr(losses, name), **options)
    return Case(name + suffix, loss, brute, arrays or normal((N, 3), (N, 3)), learned)


def contrastive_cases():
    t = {"temperature": 0.3}
    chunks = {"form": "chunked", "chunk": 2}
    for name, options, brute in (
        ("decoupled_contrastive", {}, partial(decoupled, t=0.3, weighted=False)),
        ("decoupled_contrastive", {"weighted": True}, partial(decoupled, t=0.3, weighted=True)),
        ("info_nce", {}, partial(info_nce, t=0.3)),
        ("info_nce", {"normalize": False}, partial(info_nce, t=0.3, normalize=False)),
        ("graph_cl", {}, partial(info_nce, t=0.3, positive=False)),
        ("graph_cl", {"positive_in_denominator": True}, partial(info_nce, t=0.3)),
    ):
        for form in ({}, chunks):
            yield pair_case(name, brute, **t, **options, **form)
    queued = lambda q, k, n, **more: losses.info_nce(q, k, n, temperature=0.3, **more)  # noqa: E731
    for form in ({}, chunks):
        yield Case(
            f"info_nce negatives {form}",
            partial(queued, **form),
            lambda q, k, n, w: info_nce(q, k, w, 0.3, shared=n),
            normal((N, 3), (N, 3), (4, 3)),
            3,
            (2,),
        )
    for options, factor in (({}, 0.6), ({"scale": False}, 1.0)):
        brute = lambda q, k, w, factor=factor: factor * info_nce(q, k, w, 0.3)  # noqa: E731
        yield pair_case("moco_v3", brute, 1, **t, **options)
    yield pair_case("simcse", partial(simcse, t=0.3), **t)
    yield pair_case("simcse", partial(simcse, t=0.3, symmetric=True), symmetric=True, **t)
    yield Case(
        "simcse hard",
        lambda a, b, h, **k: losses.simcse(a, b, h, temperature=0.3, hard_weight=0.7, **k),
        lambda a, b, h, w: simcse(a, b, w, 0.3, h, 0.7),
        normal((N, 3), (N, 3), (N, 3)),
        3,
    )


def labelled_cases():
    for form, base in (("out", None), ("in", None), ("out", 0.07)):
        for chunk in (2, 1024):
            options = {"temperature": 0.3, "form": form, "base_temperature": base, "chunk": chunk}
            brute = partial(sup_con, t=0.3, form=form, base=base)
            yield Case(
                f"sup_con {form} {base} {chunk}",
                partial(losses.sup_con, **options),
                brute,
                labelled(),
                per_example=False,
            )
    for squared in (True, False):
        yield Case(
            f"contrastive_pairs squared={squared}",
            partial(losses.contrastive_pairs, margin=1.5, squared=squared, chunk=2),
            partial(contrastive_pairs, margin=1.5, squared=squared),
            labelled(),
            per_example=False,
        )
    for mining, squared, soft, reduction, normalize in (
        ("all", True, False, "mean", True),
        ("all", True, False, "nonzero", True),
        ("all", False, False, "sum", False),
        ("hard", True, False, "mean", True),
        ("hard", False, True, "mean", False),
        ("semi", True, False, "mean", True),
        ("semi", False, False, "nonzero", False),
    ):
        options = {"mining": mining, "squared": squared, "soft": soft, "reduction": reduction, "normalize": normalize}
        yield Case(
            f"triplet {' '.join(map(str, options.values()))}",
            partial(losses.triplet, chunk=2, **options),
            partial(triplet, **options),
            labelled(),
            per_example=False,
        )
    yield pair_case("n_pair", partial(n_pair, l2=0.1), l2=0.1)
    yield Case("nce", losses.nce, nce, normal((N,), (N, 3), (N,), (N, 3)), 2)


def statistics_cases():
    two = {"arrays": normal((N, 3), (N, 3)), "learned": 2, "per_example": False}
    yield Case("barlow_twins", losses.barlow_twins, barlow_twins, **two)
    yield Case(
        "barlow_twins scaled",
        partial(losses.barlow_twins, lambda_offdiag=0.5, scale=0.1),
        partial(barlow_twins, offdiag=0.5, scale=0.1),
        **two,
    )
    for halve in (True, False):
        loss = partial(losses.vicreg, halve_variance=halve)
        yield Case(f"vicreg halve_variance={halve}", loss, partial(vicreg, halve=halve), **two)
    yield Case("koleo", losses.koleo, koleo, normal((N, 3)))
    yield Case("hsic", losses.hsic, hsic, normal((N, 2, 3)), per_example=False)
    yield Case("sigreg", losses.sigreg, sigreg, normal((N, 3), (3, 4)), shared=(1,), per_example=False)


def view_cases():
    yield pair_case("byol", byol, 1)
    yield pair_case("simsiam", lambda p, z, w: [v / 2 - 1 for v in byol(p, z, w)], 1)
    for skip in (True, False):
        yield Case(
            f"dino skip={skip}",
            views_first(partial(losses.dino, student_temp=0.3, teacher_temp=0.2, skip_same=skip)),
            partial(dino, ts=0.3, tt=0.2, skip=skip),
            normal((N, 4, 3), (N, 2, 3), (3,)),
            shared=(2,),
        )
    yield Case(
        "ibot",
        partial(losses.ibot, student_temp=0.3, teacher_temp=0.2),
        partial(ibot, ts=0.3, tt=0.2),
        lambda rng: [*rng.normal(size=(2, N, 4, 3)), MASK * (np.arange(N) != 2)[:, None], rng.normal(size=3)],
        shared=(3,),
    )
    yield Case(
        "sinkhorn",
        partial(losses.sinkhorn, epsilon=0.5),
        lambda s, w: sinkhorn(s, w, 0.5, 3),
        normal((N, 4)),
        per_example=False,
    )


def reconstruction_cases():
    for normalize in (True, False):
        yield Case(
            f"masked_patches normalize={normalize}",
            lambda p, i, m, normalize=normalize, **k: losses.masked_patches(i, p, m, 2, normalize, **k),
            lambda p, i, m, w, normalize=normalize: masked_patches(i, p, m, w, normalize),
            lambda rng: [rng.normal(size=(N, 4, 12)), rng.normal(size=(N, 4, 4, 3)), MASK],
        )
    numbers = normal((N, 2, 3), (N, 2, 3))
    for name, options, function in (
        ("mse", {}, lambda e: e * e),
        ("mae", {}, abs),
        ("huber", {"delta": 0.7}, huber(0.7)),
        ("smooth_l1", {"beta": 0.7}, lambda e: huber(0.7)(e) / 0.7),
        ("smooth_l1", {"beta": 0}, abs),
    ):
        yield pair_case(name, elementwise(function), arrays=numbers, **options)
    yield Case("gaussian_nll", losses.gaussian_nll, gaussian_nll, normal((N, 2), (N, 2), (N, 2)), 3)
    yield Case("vae_kl", losses.vae_kl, vae_kl, normal((N, 2), (N, 2)), 2)


def target_cases():
    logits = normal((N, 4), (N, 4))
    for scale in (True, False):
        brute = partial(distillation, t=2.0, scale=scale)
        yield pair_case("distillation", brute, 1, arrays=logits, temperature=2.0, scale=scale)
    yield Case(
        "fixmatch",
        lambda s, q, **k: losses.fixmatch(q, s, threshold=0.5, **k),
        partial(fixmatch, threshold=0.5),
        lambda rng: [rng.normal(size=(N, 4)), 2 * rng.normal(size=(N, 4))],
    )
    yield pair_case("mean_teacher", mean_teacher, 1, arrays=logits)
    yield pair_case("mean_teacher", partial(distillation, t=1.0, scale=False), 1, arrays=logits, distance="kl")
    yield Case(
        "deep_cluster",
        losses.deep_cluster,
        deep_cluster,
        lambda rng: [rng.normal(size=(N, 3)), np.array([0, 1, 2, 0, 1]), np.array([4.0, 2.0, 1.0])],
        shared=(2,),
        per_example=False,
    )
    yield Case(
        "electra",
        losses.electra,
        electra,
        lambda rng: [rng.normal(size=(N, 4)), rng.integers(0, 2, (N, 4)), MASK],
        per_example=False,
    )
    for options in ({}, {"reduction": "example"}, {"smoothing": 0.2, "z_loss": 0.1}):
        yield Case(
            f"cross_entropy texts {options}",
            partial(losses.cross_entropy, **options),
            partial(token_cross_entropy, **options),
            lambda rng: [rng.normal(size=(N, 3, 4)), LABELS],
            per_example=False,
        )
    yield Case(
        "binary_cross_entropy",
        losses.binary_cross_entropy,
        lambda x, y, w: [np.mean([binary(a, b) for a, b in zip(*rows)]) for rows in zip(x, y)],
        lambda rng: [rng.normal(size=(N, 3)), rng.integers(0, 2, (N, 3))],
    )


def swav_cases():
    def loss(large, small, queue, iterations=3, **keywords):
        weights = jnp.array([1.0, 0.0, 1.0])
        options = {"epsilon": 0.5, "iterations": iterations, "queue_weights": weights, **keywords}
        return losses.swav(*(jnp.swapaxes(x, 0, 1) for x in (large, small)), 0.3, queue=queue, **options)

    def value(large, small, queue, w, given=None, iterations=3):
        target = assignments(large, w, iterations, np.swapaxes(queue, 0, 1), np.array([1.0, 0.0, 1.0]))
        return swapped(large, small, target, w, 0.3)

    for iterations in (3, 0):
        yield Case(
            f"swav iterations={iterations}",
            partial(loss, iterations=iterations),
            partial(value, iterations=iterations),
            lambda rng: [rng.normal(size=(N, 2, 4)), rng.normal(size=(N, 1, 4)), rng.normal(size=(2, 3, 4))],
            0,  # of the scores that also make targets; `test_gradients_stop` has the rest
            (2,),
        )
    yield Case(
        "swapped",
        lambda large, small, target, **k: losses.swapped(
            *(jnp.swapaxes(x, 0, 1) for x in (large, small, target)), 0.3, **k
        ),
        partial(swapped, t=0.3),
        lambda rng: [rng.normal(size=(N, 2, 4)), rng.normal(size=(N, 1, 4)), rng.dirichlet(np.ones(4), (N, 2))],
        2,
    )
    yield Case(
        "assignments",
        lambda s, **k: jnp.swapaxes(losses.assignments(jnp.swapaxes(s, 0, 1), epsilon=0.5, **k), 0, 1),
        lambda s, w: assignments(s, w),
        normal((N, 2, 4)),
        0,
        per_example=False,
    )


CASES = [
    *contrastive_cases(),
    *labelled_cases(),
    *statistics_cases(),
    *view_cases(),
    *swav_cases(),
    *reconstruction_cases(),
    *target_cases(),
]
