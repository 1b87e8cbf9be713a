"""Checkpoints: orbax for the files, our own checksums for trust.

Each checkpoint holds the state and a note (`meta`): format number, shape, type and checksum of every leaf, the identity
of the run, and the step. Orbax notices missing and truncated files but lets flipped bytes through; the checksums, taken
on device before saving and again after restoring, do not. A checkpoint that cannot be read or does not match its note
is reported and the one before it is used.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.train.state import State

FORMAT = 1
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Best:
    """The rule by which the checkpoint with the best value of an evaluation's metric is kept."""

    metric: str = schema.setting(
        free=True,
        doc="'evaluation/metric', such as 'knn/accuracy'; it ranks a checkpoint if measured at the checkpoint's step",
    )
    mode: Literal["max", "min"] = schema.setting("max", free=True, doc="direction in which the metric improves")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept; one is always written at the end and at SIGTERM."""

    every_steps: int | None = schema.setting(
        None, gt=0, free=True, doc="steps between checkpoints; None: one at the end of the run and at a stop"
    )
    keep: int = schema.setting(2, gt=0, free=True, doc="number of the newest checkpoints that are kept")
    best: Best | None = schema.setting(
        None, free=True, doc="metric by which one more checkpoint, the best, is kept; None: only the newest are kept"
    )


class Part(NamedTuple):
    """What a run has learned, of all its state."""

    params: Any
    extra: Any
    ema: Any = None


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(
        self, folder: pathlib.Path, config: CheckpointConfig, identity: dict[str, Any], *, read_only: bool = False
    ):
        """`read_only` leaves everything as it is: another process may be writing here."""
        self.folder = pathlib.Path(folder).absolute()
        self.read_only = read_only
        self.identity = identity
        self.best = config.best
        policies: list[Any] = [checkpoint_managers.LatestN(config.keep)]
        rank = None
        if self.best:
            sign, metric = (1 if self.best.mode == "max" else -1), self.best.metric
            rank = lambda metrics: sign * metrics.get(metric, -sign * float("inf"))  # noqa: E731
            # Checkpoints without the metric are kept by being recent, never by being best.
            policies.append(checkpoint_managers.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=rank,  # orbax writes metrics only where it has this
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only,  # what a kill in the middle of a save left behind
                read_only=read_only,
            ),
        )

    def save(self, state: State, step: int, metrics: dict[str, float] | None = None) -> None:
        """Write the state in the background; blocks only for the copy off the device.

        Args:
            metrics: those that were measured at this very step; the best checkpoint is chosen by them.

        Raises:
            UserError: an earlier write failed (a full disk); the checkpoints before it are untouched.
        """
        if step in self.manager.all_steps():
            return
        meta = {"format": FORMAT, "step": step, "identity": self.identity, "leaves": describe(state)}
        measured = (metrics or {}).get(self.best.metric, float("nan")) if self.best else float("nan")
        try:
            saved = self.manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
                metrics={self.best.metric: measured} if self.best and math.isfinite(measured) else None,
            )
        except Exception as error:
            raise _write_error(self.folder, error) from error
        if not saved:  # orbax says so by its result alone
            raise UserError(f"{self.folder}: the checkpoint of step {step} was not written; a newer one is there")

    def wait(self) -> None:
        """Block until every write is finished."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise _write_error(self.folder, error) from error

    def close(self) -> None:
        self.wait()
        self.manager.close()

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def restore(self, target: Any, step: int | None = None, *, force: bool = False) -> tuple[Any, int] | None:
        """The newest sound checkpoint, placed as `target` says, or None when there is none at all.

        Newer ones that are damaged are moved aside (`damaged-STEP`), so that the run can save these steps again; where
        none is sound, nothing is moved.

        Args:
            target: State of `jax.ShapeDtypeStruct` with shardings (any mesh, any number of devices), or `Part` of one
                without shardings: only that is read, into the memory of the host.
            step: this one and no other.
            force: accept the checkpoint of a run with another identity.

        Raises:
            UserError: checkpoints exist but none is sound; `step` is not there or damaged; the newest readable one
                belongs to another run, or its arrays have other shapes; reading failed for a reason that lies
                elsewhere (permission, memory).
        """
        steps = self.steps() if step is None else [step]
        if step is not None and step not in self.steps():
            raise UserError(f"{self.folder}: no checkpoint of step {step} (there are: {self.steps()})")
        damaged: list[int] = []
        problem = ""
        for candidate in steps:
            try:
                state = self._sound(candidate, target, force)
            except _DamagedError as error:
                problem = str(error)
                log.warning("checkpoint %d is damaged and skipped: %s", candidate, problem)
                damaged.append(candidate)
                continue
            if damaged and not self.read_only:
                self._move_aside(damaged)
            return state, candidate
        if damaged:
            # Beginning anew would cut the metrics back to nothing; whoever wants that says so by another folder.
            raise UserError(
                f"{self.folder}: no sound checkpoint among steps {steps} (last problem: {problem}); nothing was "
                f"changed: put back a copy of one, or train in a new folder"
            )
        return None

    def identity_of(self, step: int) -> dict[str, Any]:
        """The identity of the run that saved it."""
        return self._meta(step)["identity"]

    def _sound(self, step: int, target: Any, force: bool) -> Any:
        """The checkpoint of a step; raises `_DamagedError` where it cannot be read or does not match its note."""
        with _reading(self.folder, step):
            meta = self._meta(step)
        mismatch = _mismatch(meta, target)
        if mismatch:
            raise UserError(f"{self.folder}: the checkpoint of step {step} does not fit: {mismatch}")
        if meta["identity"] != self.identity and not force:
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} is of another run (identity "
                f"{digest(meta['identity'])}, this one is {digest(self.identity)}); --resume=force goes on with it"
            )
        with _reading(self.folder, step):
            state = self._read(step, target)
        wrong = [k for k, leaf in describe(state).items() if leaf != meta["leaves"][k]]
        if wrong:
            raise _DamagedError(f"the checksum of {wrong[0]} differs ({len(wrong)} arrays do)")
        return state

    def _read(self, step: int, target: Any) -> Any:
        if not isinstance(target, Part):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            return self.manager.restore(step, args=args)["state"]
        parts = {name: tree for name, tree in target._asdict().items() if jax.tree.leaves(tree)}
        host = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), parts)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            args = ocp.args.PyTreeRestore(item=parts, restore_args=host, partial_restore=True)
            return target._replace(**checkpointer.restore(self.folder / str(step) / "state", args=args))

    def _move_aside(self, steps: list[int]) -> None:
        for step in steps:
            aside = self.folder.parent / f"damaged-{step}"
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            (self.folder / str(step)).rename(aside)
            log.warning("checkpoint %d is now %s", step, aside)
        self.manager.reload()

    def _meta(self, step: int) -> dict[str, Any]:
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def describe(state: Any) -> dict[str, dict[str, Any]]:
    """Path of each leaf -> its shape, type and checksum."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    leaves = jax.tree.leaves(state)
    sums = [int(s) for s in jax.device_get(_checksums(leaves))]
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": checksum}
        for path, leaf, checksum in zip(paths, leaves, sums)
    }


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [checksum(leaf) for leaf in leaves]


def checksum(x: jax.Array) -> jax.Array:
    """A uint32 of all bits of an array: the sum of its words, each times an odd number that depends on its place.

    Sums of integers do not depend on their order, so it is the same on every mesh; an odd factor loses no bit, so any
    single changed word changes the sum.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize])
    words = x.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    factor = (place * jnp.uint32(0x9E3779B1)) | jnp.uint32(1)
    return jnp.sum(words * factor, dtype=jnp.uint32)


def _mismatch(meta: dict[str, Any], target: Any) -> str:
    """What keeps a checkpoint from filling `target`, or an empty text."""
    if meta["format"] != FORMAT:
        return f"format {meta['format']}, this version reads {FORMAT}"
    wanted = {
        jax.tree_util.keystr(path): (list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    saved = {path: (leaf["shape"], leaf["dtype"]) for path, leaf in meta["leaves"].items()}
    for path in wanted if isinstance(target, Part) else [*wanted, *saved]:
        if wanted.get(path) != saved.get(path):
            return f"{path}: saved as {saved.get(path, 'nothing')}, wanted {wanted.get(path, 'nothing')}"
    return ""


class _DamagedError(Exception):
    """The files of a checkpoint are not what was written."""


# Failures to read that say nothing about the files; tensorstore's errors begin with such a code.
_ELSEWHERE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


@contextlib.contextmanager
def _reading(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Tells a damaged checkpoint from one that cannot be read just now."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PermissionError | MemoryError) or any(code in str(error) for code in _ELSEWHERE):
            raise UserError(f"{folder}: cannot read the checkpoint of step {step}: {_first_line(error)}") from error
        raise _DamagedError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _write_error(folder: pathlib.Path, error: Exception) -> UserError:
    text = str(error)
    full = any(mark in text for mark in ("No space left", "ENOSPC", "File too large"))
    why = "the disk is full" if full else _first_line(error)
    return UserError(f"{folder}: cannot write a checkpoint: {why}; the last good checkpoint is kept")
