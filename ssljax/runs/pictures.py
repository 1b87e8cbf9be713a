"""The pictures of a run: what its objective does on held-out examples."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import data, evals
from ssljax.base.exhibits import Exhibit
from ssljax.data.rows import last_token
from ssljax.evals.generation import Sampling, generate
from ssljax.evals.pictures import confusion, neighbours
from ssljax.objectives.base import stream
from ssljax.objectives.pictures import Showing
from ssljax.runs.assembly import Assembly

log = logging.getLogger(__name__)

ROWS = 32  # held-out examples that an objective sees


def pictures(
    assembly: Assembly, evaluator: evals.Evaluator, params: Any, extra: Any, embedding: Mapping[str, np.ndarray]
) -> dict[str, Exhibit]:
    """Returns the pictures of a model by name; parts that fail are left out, with a warning.

    Args:
        assembly: the run.
        evaluator: its evaluations, whose test splits have the examples.
        params, extra: the variables of the objective.
        embedding: see `evals.Evaluator.embedding`; {}: none.
    """
    parts = (
        lambda: _of_objective(assembly, evaluator, params, extra),
        lambda: _confusion(evaluator, params, extra),
        lambda: _neighbours(embedding, assembly.spec.classes),
    )
    found: dict[str, Exhibit] = {}
    for part in parts:
        try:
            found |= part()
        except Exception as error:  # pictures must not cost a run its report
            log.warning("pictures are left out: %s: %s", type(error).__name__, error)
    return found


def _of_objective(assembly: Assembly, evaluator: evals.Evaluator, params: Any, extra: Any) -> dict[str, Exhibit]:
    """Returns the pictures of the objective; {} if no evaluation has examples of its kind."""
    objective, program = assembly.program.objective, assembly.program
    rows = evaluator.examples(assembly.rows_at_least(ROWS))
    if rows is None:
        return {}
    size = assembly.rows_at_least(ROWS)  # filled up with copies of the last row
    batch = {k: v[np.minimum(np.arange(size), len(v) - 1)] for k, v in rows.items()}
    batch = jax.jit(lambda batch: objective.prepare(batch))(program.put(data.device_batch(batch)))
    decode = None
    if assembly.spec.vocab_size is not None:
        decode = data.open_tokenizer(assembly.config.data).decode
    key = stream(jnp.uint32(assembly.config.seed), 0, "pictures")
    model = functools.partial(_generate, assembly, params, extra, key)
    show = Showing(key, min(8, len(rows["id"])), decode, model)
    return objective.pictures(params, extra, batch, show)


def _generate(
    assembly: Assembly,
    params: Any,
    extra: Any,
    key: jax.Array,
    prompts: Sequence[np.ndarray],
    count: int,
    start: Sequence[int],
) -> list[np.ndarray]:
    """See `Showing.generate`: drawn at temperature 0.8 from the 40 most probable tokens, or greedy after `start`."""
    objective, end = assembly.program.objective, last_token(assembly.spec.special_ids)
    drawn: dict[str, Any] = {} if start else {"temperature": 0.8, "top_k": 40}
    sampling = Sampling(max_new_tokens=count, stop=() if end is None else ((end,),), **drawn)
    model_params = objective.model_params(params, extra)
    options: dict[str, Any] = {"start": start, "prefix": getattr(objective, "prefixed", False)}
    return generate(objective.model, model_params, prompts, sampling, key, **options, mesh=assembly.program.mesh)


def _confusion(evaluator: evals.Evaluator, params: Any, extra: Any) -> dict[str, Exhibit]:
    found = evaluator.predictions(params, extra)
    if found is None:
        return {}
    classes = evaluator.objective.classes
    return {"confusion": confusion(*found, classes, evaluator.class_names)}


def _neighbours(embedding: Mapping[str, np.ndarray], names: Sequence[str] | None) -> dict[str, Exhibit]:
    if "images" not in embedding or len(embedding["images"]) < 2:
        return {}
    labels = embedding.get("label")
    known = names if labels is not None and names and labels.max() < len(names) else ()
    return {"neighbours": neighbours(embedding["features"], embedding["images"], labels, known or ())}
