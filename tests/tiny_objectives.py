"""The smallest config of every objective, with settings that endanger exactness: dropout, drop path, ragged rows."""

import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import objectives
from ssljax.data import DataSpec
from ssljax.objectives.base import Ctx, stream
from ssljax.train import microbatch
from ssljax.views import example_keys

BATCH = 16
STEPS = 10
SEQUENCES = ("span_corruption", "text_infilling", "gap_sentences", "mixture_of_denoisers")
LENGTH = 12

_WORDS = ("one", "small", "step", "for", "a", "model", "and", "a", "giant", "leap", "for", "its", "loss")
_VIT = {
    "name": "vit",
    "preset": None,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "patch_size": 4,
    "dropout": 0.1,
    "drop_path": 0.1,
}
_TEXT = {"preset": None, "width": 32, "depth": 2, "heads": 4, "dropout": 0.1}
_HEAD = {"hidden": 32, "bottleneck": 16, "prototypes": 24}
_PROJECTOR = {"hidden": 32, "output": 16}
_HEADS = {"projector": _PROJECTOR, "predictor": {"hidden": 24}}
_CROPS = {"name": "multi_crop", "local_crops": 2, "local_size": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "classification": {"model": _VIT, "objective": {"label_smoothing": 0.1, "mixup": 0.2}},
    "simclr": {"model": _VIT, "objective": {"projector": _PROJECTOR, "form": "chunked"}},
    "clip": {
        "model": {
            "name": "clip",
            "embed_dim": 16,
            "image": {k: v for k, v in _VIT.items() if k != "name"},
            "text": dict(_TEXT),
        },
        "objective": {},
    },
    "siglip": {
        "model": {"name": "siglip", "image": {k: v for k, v in _VIT.items() if k != "name"}, "text": dict(_TEXT)},
        "objective": {"form": "ring"},
    },
    "mae": {"model": {**_VIT, "positions": "sincos"}, "objective": {"decoder": {"width": 32, "depth": 1, "heads": 2}}},
    "captioning": {
        "model": {
            "name": "llava",
            "image": {k: v for k, v in _VIT.items() if k != "name"},
            "text": {"name": "llama", **_TEXT},
        },
        "objective": {},
    },
    "mlm": {"model": {"name": "bert", **_TEXT}, "objective": {"rate": 0.3}},
    "masked_diffusion": {"model": {"name": "bert", **_TEXT}, "objective": {"samples": 4}},
    "electra": {
        "model": {"name": "bert", "extras": ("replaced",), **_TEXT},
        "objective": {"rate": 0.3, "generator": 0.5},
    },
    "word2vec": {"model": {"name": "word_vectors", "width": 32}, "objective": {"window": 3, "subsample": 0.05}},
    "xlnet": {"model": {"name": "xlnet", **_TEXT}, "objective": {"share": 0.3}},
    "causal_lm": {"model": {"name": "gpt", **_TEXT}, "objective": {}},
    "image_gpt": {"model": {"name": "gpt", **_TEXT}, "objective": {"clusters": 12, "sample": 16, "iterations": 3}},
    "prefix_lm": {"model": {"name": "gpt", **_TEXT}, "objective": {}},
    "span_corruption": {"model": {"name": "t5", "vocab_size": 72, **_TEXT}, "objective": {"rate": 0.3, "mean_span": 2}},
    "text_infilling": {"model": {"name": "bart", "vocab_size": 72, "max_len": 16, **_TEXT}, "objective": {}},
    "gap_sentences": {"model": {"name": "pegasus", "vocab_size": 72, **_TEXT}, "objective": {"unmasked": 0.2}},
    "mixture_of_denoisers": {"model": {"name": "t5", "vocab_size": 80, **_TEXT}, "objective": {}},
    "dino": {"model": _VIT, "objective": {"head": _HEAD, "augment": _CROPS}},
    "align_uniform": {"model": _VIT, "objective": {"projector": _PROJECTOR}},
    "barlow_twins": {"model": _VIT, "objective": {"projector": _PROJECTOR}},
    "byol": {"model": _VIT, "objective": _HEADS},
    "cpc": {
        "model": {**_VIT, "patch_size": 2},
        "objective": {"part": 2, "ahead": 2, "context": {"width": 32, "depth": 1, "heads": 2}, "form": "chunked"},
    },
    "dcl": {"model": _VIT, "objective": {"projector": _PROJECTOR, "weighted": True, "form": "chunked"}},
    "graph_cl": {
        "model": {"name": "gin", "width": 32, "depth": 2, "dropout": 0.1},
        "objective": {"projector": _PROJECTOR, "form": "chunked"},
    },
    "lejepa": {"model": _VIT, "objective": {"projector": _PROJECTOR, "directions": 8}},
    "moco": {"model": _VIT, "objective": {**_HEADS, "form": "chunked"}},
    "nnclr": {"model": _VIT, "objective": {**_HEADS, "queue": 32}},
    "simcse": {
        "model": {"name": "bert", "pool": "mean", **_TEXT},
        "objective": {"projector": {"output": 16}, "symmetric": True},
    },
    "simmim": {
        "model": {**_VIT, "mask_token": True},
        "objective": {"target": "hog", "mask_ratio": 0.75, "adversary": {"share": 1.0}},
    },
    "simsiam": {"model": _VIT, "objective": _HEADS},
    "ssl_hsic": {"model": _VIT, "objective": _HEADS},
    "sup_con": {"model": _VIT, "objective": {"projector": _PROJECTOR}},
    "triplet": {"model": _VIT, "objective": {"projector": _PROJECTOR, "mining": "all"}},
    "contrastive_pairs": {"model": _VIT, "objective": {"projector": _PROJECTOR, "margin": 4.0}},
    "n_pair": {"model": _VIT, "objective": {"projector": _PROJECTOR}},
    "vicreg": {"model": _VIT, "objective": {"projector": _PROJECTOR}},
    "ibot": {
        "model": {**_VIT, "mask_token": True},
        "objective": {"head": _HEAD, "augment": _CROPS, "mask_probability": 0.8},
    },
    "i_jepa": {
        "model": {**_VIT, "patch_size": 2, "positions": "sincos"},
        "objective": {"predictor": {"width": 32, "depth": 1, "heads": 2}, "context": 0.3},
    },
    "msn": {
        "model": {**_VIT, "patch_size": 2},
        "objective": {"mask_ratio": 0.5, "prototypes": 24, "projector": _PROJECTOR, "augment": _CROPS},
    },
    "colorization": {"model": _VIT, "objective": {"bins": 30, "cell": 2}},
    "distillation": {"model": _VIT, "objective": {"teacher_model": {**_VIT, "depth": 1}, "mixup": 0.2}},
    "deep_cluster": {
        "model": _VIT,
        "objective": {"clusters": 5, "queue": 32, "refresh": 2, "iterations": 3, "components": 4},
    },
    "data2vec": {
        "model": {**_VIT, "patch_size": 2, "mask_token": True},
        "objective": {"mask_ratio": 0.5, "smallest": 3, "top_blocks": 2, "beta": 0.5},
    },
    "autoencoder": {"model": _VIT, "objective": {"code": 6, "decoder": {"hidden": 24}, "noise": "gaussian"}},
    # Errors are summed over pixels, so a small deviation would make steps of SGD diverge.
    "vae": {"model": _VIT, "objective": {"code": 6, "decoder": {"hidden": 24}, "pixel_std": 8.0}},
    "regression": {"model": _VIT, "objective": {"error": "gaussian"}},
    "multi_label": {"model": {"name": "bert", "pool": "mean", **_TEXT}, "objective": {"column": "tags"}},
    "fusion": {
        "model": {**_VIT, "positions": "sincos"},
        "objective": {
            "parts": {
                "pixels": {"name": "mae", "decoder": {"width": 32, "depth": 1, "heads": 2}},
                "views": {"name": "moco", **_HEADS},
            },
            "weights": {"views": 0.5},
        },
    },
    "fixmatch": {"model": _VIT, "objective": {"threshold": 0.2}},
    "mean_teacher": {"model": _VIT, "objective": {"weight": 10.0}},
    "pseudo_label": {"model": _VIT, "objective": {}},
    "rotation": {"model": _VIT, "objective": {}},
    "relative_patch": {
        "model": {**_VIT, "patch_size": 2},
        "objective": {"patch": 2, "gap": 0, "jitter": 1, "hidden": 16},
    },
    "jigsaw": {"model": {**_VIT, "patch_size": 2}, "objective": {"grid": 2, "permutations": 5, "gap": 2, "hidden": 16}},
    "swav": {"model": _VIT, "objective": {"prototypes": 24, "projector": _PROJECTOR, "augment": _CROPS, "queue": 32}},
}

SPEC = DataSpec(
    elements={
        "image": {"shape": [8, 8, 3], "dtype": "uint8"},
        "label": {"shape": [], "dtype": "int32"},
        "tokens": {"shape": [LENGTH], "dtype": "int32"},
        "segment_ids": {"shape": [LENGTH], "dtype": "int32"},
        "positions": {"shape": [LENGTH], "dtype": "int32"},
        "target": {"shape": [2], "dtype": "float32"},
        "tags": {"shape": [3], "dtype": "int32"},
        "nodes": {"shape": [6, 4], "dtype": "float32"},
        "adjacency": {"shape": [6, 6], "dtype": "bool"},
        "node_mask": {"shape": [6], "dtype": "bool"},
    },
    size=1000,
    num_classes=5,
    vocab_size=64,
    special_ids={"pad": 0, "cls": 1, "sep": 2, "mask": 3},
    sentence_ends=tuple(range(4, 24)),
    max_len=LENGTH,
    tokens=1000 * LENGTH,
    streams={"unlabeled": {"elements": {"image": {"shape": [8, 8, 3], "dtype": "uint8"}}, "size": 500, "ratio": 2.0}},
)


def config(name: str, bytes: bool = False) -> dict[str, Any]:
    """The groups `model` and `objective` of the smallest config, for text as bytes or for the tokens of SPEC."""
    if name not in CONFIGS:
        raise AssertionError(
            f"objective {name!r} is registered but has no entry in tests/tiny_objectives.py, so nothing tests it"
        )
    entry = CONFIGS[name]
    sizes = {"vocab_size": 320, "max_len": 48}
    room = {key: value for key, value in sizes.items() if bytes and key in entry["model"]}
    return {"model": {**entry["model"], **room}, "objective": {"name": name, **entry["objective"]}}


def data(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The group `data` of an objective: digits, sentences as bytes, or pairs of both, written to a folder."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(_WORDS, 12))}) + "\n" for _ in range(1437)]  # a row for each digit
    (folder / "captions.jsonl").write_text("".join(lines))
    captions = f"jsonl:{folder}/captions.jsonl"
    text = {"tokenizer": {"name": "bytes"}, "seq_len": 32}
    windows = {"source": captions, "mode": "windows", **text}
    pairs = {"source": f"builtin:digits+{captions}", "mode": "documents", **text}
    own = {
        "clip": pairs,
        "siglip": pairs,
        "captioning": pairs,
        "mlm": windows,
        "masked_diffusion": windows,
        "electra": windows,
        "simcse": windows,
        "word2vec": windows,
        "xlnet": windows,
        "causal_lm": {**windows, "overlap": 1},
    }
    own |= dict.fromkeys(("prefix_lm", *SEQUENCES), windows)
    if name == "regression":
        return {"source": "builtin:digits", "keys": {"image": "image", "target": "label"}, "max_examples": 200}
    if name == "graph_cl":  # rings, and pairs of nodes
        graphs = [
            [f"{n} {i % 2}", *(f"0 2 {(v - 1) % n} {(v + 1) % n}" if i % 2 else f"0 1 {v ^ 1}" for v in range(n))]
            for i, n in enumerate(rng.choice([4, 6, 8], 200))
        ]
        (folder / "graphs.txt").write_text("\n".join(["200", *(line for graph in graphs for line in graph)]))
        return {"source": f"graphs:{folder}/graphs.txt"}
    if name == "multi_label":
        words = np.array([[word in json.loads(line)["text"] for word in ("giant", "loss", "step")] for line in lines])
        np.savez(folder / "tags.npz", tags=words.astype(np.int32))
        return {
            "source": f"{captions}+npz:{folder}/tags.npz",
            "keys": {"text": "text", "tags": "tags"},
            "mode": "documents",
            **text,
        }
    if name == "colorization":
        np.savez(folder / "colours.npz", image=rng.integers(0, 256, (200, 8, 8, 3), np.uint8))
        return {"source": f"npz:{folder}/colours.npz", "keys": {"image": "image"}}
    if name in ("fixmatch", "mean_teacher", "pseudo_label"):
        return {
            "source": "builtin:digits",
            "max_examples": 200,
            "streams": {"unlabeled": {"source": "builtin:digits", "keys": {"image": "image"}, "ratio": 2.0}},
        }
    return own.get(name, {"source": "builtin:digits", "max_examples": 200})


def make(objective: str, **model: Any) -> Any:
    """A registered objective with its model; keys of `model` override those of the smallest config, or with a `name`
    replace them."""
    groups = config(objective)
    model = model if "name" in model else {**groups["model"], **model}
    return objectives.create({**groups, "model": model}, SPEC, STEPS)


def batch(seed: int = 0) -> dict[str, jax.Array]:
    """A batch of random images, tokens and graphs; each row has one or two segments, then padding."""
    rng = np.random.default_rng(seed)
    filled = rng.integers(4, LENGTH + 1, BATCH)
    place = np.arange(LENGTH)
    cut = filled[:, None] // 2
    segments = np.where(place < cut, 1, 2) * (place < filled[:, None])
    positions = np.where(place < cut, place, place - cut) * (segments > 0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, 8, 8, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 5, BATCH), jnp.int32),
        "tokens": jnp.asarray(np.where(segments > 0, rng.integers(4, 64, (BATCH, LENGTH)), 0), jnp.int32),
        "segment_ids": jnp.asarray(segments, jnp.int32),
        "positions": jnp.asarray(positions, jnp.int32),
        "target": jnp.asarray(rng.normal(size=(BATCH, 2)), jnp.float32),
        "tags": jnp.asarray(rng.integers(0, 2, (BATCH, 3)), jnp.int32),
        "unlabeled": {"image": jnp.asarray(rng.integers(0, 256, (2 * BATCH, 8, 8, 3)), jnp.uint8)},
    }
    mask = np.arange(6) < rng.integers(3, 7, BATCH)[:, None]
    upper = np.triu(rng.random((BATCH, 6, 6)) < 0.5, 1) & mask[:, :, None] & mask[:, None, :]
    nodes = np.eye(4)[rng.integers(0, 4, (BATCH, 6))] * mask[..., None]
    return batch | {
        "nodes": jnp.asarray(nodes, jnp.float32),
        "adjacency": jnp.asarray(upper | upper.swapaxes(1, 2)),
        "node_mask": jnp.asarray(mask),
    }


def gradients(
    objective: Any, params: Any, extra: Any, batch: Any, ctx: Any, slices: int, scale: Any = None, **options: Any
) -> Any:
    """`train.microbatch.gradients` of a batch, with the views that the step makes of it at seed 0."""
    key = stream(0, ctx.step, "views")

    def inputs_of(batch: Any, rows: jax.Array) -> Any:
        return objective.views(example_keys(key, rows), objective.prepare(batch), ctx.step)

    batch = objective.mixed(example_keys(key, ctx.row), batch, ctx.step)
    return microbatch.gradients(objective, params, extra, batch, inputs_of, ctx, slices, scale, **options)


def check_slices(objective: Any) -> None:
    """Asserts that loss and gradients of a batch in four slices, with dropout, are those of the whole batch."""
    whole = batch()
    params = jax.jit(lambda: nn.meta.unbox(objective.init(jax.random.key(0), whole)))().params
    ctx = Ctx(stream(0, 3, "encode"), jnp.int32(3), jnp.arange(BATCH, dtype=jnp.int32))
    one, four = (jax.jit(lambda p, b, n=n: gradients(objective, p, {}, b, ctx, n))(params, whole) for n in (1, 4))
    np.testing.assert_allclose(one.value, four.value, rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one.grads))
    assert largest > 0
    for a, b in zip(jax.tree.leaves(one.grads), jax.tree.leaves(four.grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
