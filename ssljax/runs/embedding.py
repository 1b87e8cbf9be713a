"""Features of new data, from a workdir or a model in the Hugging Face format, as a file."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ssljax import data, views
from ssljax.base.errors import UserError, nearest
from ssljax.base.files import replacing
from ssljax.interop import hf
from ssljax.runs import imported
from ssljax.runs.assembly import Assembly
from ssljax.runs.evaluation import evaluation_params, open_run
from ssljax.runs.loading import is_imported, load
from ssljax.runs.workdir import Workdir
from ssljax.train.state import State

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Features of some examples.

    Attributes:
        features: float32 [N, D].
        names: name of each example: its path within a folder of images, else its file and row.
        labels: int32 [N]; None without labels.
        classes: names of the classes; None without names.
    """

    features: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None


def embed(
    workdir: str | pathlib.Path,
    source: str | None = None,
    *,
    split: str = "train",
    keys: Mapping[str, Any] | None = None,
    feature: str = "pooled",
    step: int | None = None,
    batch_size: int = 256,
) -> Embedded:
    """Returns the features of all rows of a source, prepared as for the evaluations of the run.

    Of a folder in the Hugging Face format, its files say how pictures and texts are prepared, and `feature` is one of
    those of `ssljax.runs.imported.features`.

    Args:
        workdir: the folder of a run, or of a model in the Hugging Face format.
        source: URI of the data; None: the source of the run.
        split: name or slice of a split.
        keys: name in the batch -> column, as `data.keys`; None: as in the run for its own source, else by their names.
        feature: name of a feature of the objective; features of several positions are joined to one vector.
        step: number of the checkpoint; None: the newest.
        batch_size: rows that are computed at a time, about.

    Raises:
        UserError: no workdir, no checkpoint, no such feature, or an error in the source.
    """
    rows: data.RawRows | data.SplitRows
    if is_imported(workdir):
        if source is None:
            raise UserError(f"--source: missing; {str(workdir)!r} is no workdir and has no data of its own")
        model = load(workdir, step)
        assert isinstance(model, hf.Model)
        rows = data.RawRows(data.SourceConfig(source, split, dict(keys or {})))
        parts = list(imported.features(model, rows, feature, batch_size))
    else:
        with open_run(Workdir(workdir), step) as (assembly, state):
            rows = data.open_split(assembly.config.data, split, source=source, keys=keys, spec=assembly.spec)
            parts = list(_features(assembly, state, rows, feature, batch_size))
    labels = np.concatenate([batch["label"] for batch, _ in parts]) if "label" in parts[0][0] else None
    ids = np.concatenate([batch["id"] for batch, _ in parts]).tolist()
    return Embedded(np.concatenate([f for _, f in parts]), rows.names(ids), labels, rows.classes)


def _features(
    assembly: Assembly, state: State, rows: data.SplitRows, feature: str, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields batches on the host and their features, float32 [b, D]."""
    objective, params, extra = assembly.program.objective, evaluation_params(state), state.extra
    compute = jax.jit(lambda batch: objective.features(params, extra, views.centered(objective.prepare(batch))))
    size = assembly.rows_at_least(min(batch_size, rows.size))
    for start in range(0, rows.size, size):
        batch = rows.take(np.arange(start, min(start + size, rows.size)))
        if not (count := len(batch["id"])):
            continue
        inputs = {k: v for k, v in batch.items() if k not in ("id", "label")}
        if count < size:  # filled up with copies of the last row
            inputs = {k: v[np.minimum(np.arange(size), count - 1)] for k, v in inputs.items()}
        found = compute(assembly.program.put(inputs))
        if feature not in found:
            raise UserError(
                f"--feature: the objective gives no {feature!r}{nearest(feature, found)} (it gives: {', '.join(found)})"
            )
        yield batch, np.asarray(found[feature], np.float32).reshape(size, -1)[:count]
        log.info("%s of %s rows", f"{min(start + size, rows.size):,}", f"{rows.size:,}")


def write_embedded(embedded: Embedded, path: str | pathlib.Path) -> pathlib.Path:
    """Writes features as .npz (`features`, `name`, `label`, `classes`), .parquet (columns) or .npy (features alone).

    Raises:
        UserError: another ending of the name, or a folder that does not exist.
    """
    path = pathlib.Path(path)
    check_out(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        _WRITERS[path.suffix](embedded, file)
    return path


def check_out(path: pathlib.Path) -> None:
    """Raises UserError if no features can be written to a path."""
    if path.suffix not in _WRITERS:
        raise UserError(f"--out: got {str(path)!r}, must end in {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise UserError(f"--out: the folder {str(path.parent)!r} does not exist")


def _write_npz(embedded: Embedded, file: Any) -> None:
    arrays: dict[str, Any] = {"features": embedded.features, "name": np.array(embedded.names)}
    arrays |= {} if embedded.labels is None else {"label": embedded.labels}
    arrays |= {} if embedded.classes is None else {"classes": np.array(embedded.classes)}
    np.savez(file, **arrays)


def _write_parquet(embedded: Embedded, file: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = embedded.features.shape[1]
    flat = pa.array(embedded.features.reshape(-1))
    columns = {"name": pa.array(embedded.names), "features": pa.FixedSizeListArray.from_arrays(flat, width)}
    if embedded.labels is not None:
        names = embedded.classes
        labels = embedded.labels if names is None else [names[label] for label in embedded.labels]
        columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), file)


def _write_npy(embedded: Embedded, file: Any) -> None:
    np.save(file, embedded.features)


_WRITERS: dict[str, Callable[[Embedded, Any], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}
