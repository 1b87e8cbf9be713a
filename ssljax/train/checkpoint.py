"""Checkpoints, written by orbax and verified by checksums.

Each checkpoint holds the state and a record (`meta`): format number, step, identity of the run, and shape, type and
checksum of every leaf. Checksums are computed where the arrays are, before saving and after restoring, and detect
flipped bytes, which orbax does not. A checkpoint that cannot be read or does not match its record is damaged: it is
reported, and the next older one is used.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_manager, checkpoint_managers

from ssljax import parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.files import move_whole
from ssljax.base.hashing import digest
from ssljax.train.state import State

FORMAT = 2  # 1: another checksum
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint by a metric of an evaluation, kept in addition to the newest ones."""

    metric: str = schema.setting(
        free=True, doc='metric "evaluation/metric", such as "knn/accuracy", measured at the step of the checkpoint'
    )
    mode: Literal["max", "min"] = schema.setting(
        "max", free=True, doc="the best value of the metric; 'max': the largest, 'min': the smallest"
    )


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The end of a run whose metric no longer improves. The last checkpoint is that of the step at which it ends."""

    metric: str = schema.setting(free=True, doc='metric "evaluation/metric" of an evaluation with `every_steps`')
    mode: Literal["max", "min"] = schema.setting(
        "max", free=True, doc="the best value of the metric; 'max': the largest, 'min': the smallest"
    )
    patience: int = schema.setting(
        3, ge=1, free=True, doc="number of evaluations in a row without a better value after which the run ends"
    )

    def is_exhausted(self, values: Sequence[float | None]) -> bool:
        """Returns True if the last `patience` values are not better than the best one before; None is never better."""
        sign = 1.0 if self.mode == "max" else -1.0
        signed = [-math.inf if value is None else sign * value for value in values]
        return len(signed) > self.patience and max(signed[-self.patience :]) <= max(signed[: -self.patience])


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The schedule of checkpoints. One is always written at the end of a run and after a signal to stop."""

    every_steps: int | None = schema.setting(
        None,
        gt=0,
        free=True,
        doc="number of steps between checkpoints; None: only at the end and after a signal to stop",
    )
    keep: int = schema.setting(2, gt=0, free=True, doc="number of newest checkpoints to keep")
    best: Best | None = schema.setting(None, free=True, doc="also keep the best checkpoint by a metric")


class Weights(NamedTuple):
    """The part of a `State` that a model needs: without optimiser state and counters."""

    params: Any
    extra: Any
    ema: Any = None  # averaged parameters; None: without


class Source(Protocol):
    """The place that keeps what each process of a job writes into a folder of its own."""

    def fetch(self, step: int, is_needed: Callable[[str], bool]) -> None:
        """Brings the files of a checkpoint for whose names `is_needed` is True."""

    def set_aside(self, step: int) -> None:
        """Removes a damaged checkpoint from the folder, and keeps it elsewhere. Called by all processes."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: CheckpointConfig,
        identity: dict[str, Any],
        *,
        read_only: bool = False,
        source: Source | None = None,
    ):
        """Opens the folder.

        Args:
            folder: folder of the checkpoints.
            config: which checkpoints are kept.
            identity: identity of the run, stored in each checkpoint and compared when one is restored.
            read_only: change nothing in the folder, since another process may be writing to it.
            source: None: all processes of the job see the folder. Else each process has a folder of its own, with the
                same steps, in which it writes its shards alone; the source brings those that it reads.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._alias = _Alias(self.folder, make=not read_only)
        self._source = source
        self.read_only = read_only
        self.identity = identity
        self.best, self.keep = config.best, config.keep
        policies: list[Any] = [checkpoint_managers.LatestN(config.keep)]
        rank = None
        if self.best:
            sign, metric = (1 if self.best.mode == "max" else -1), self.best.metric
            rank = lambda metrics: sign * metrics.get(metric, -sign * float("inf"))  # noqa: E731
            # Checkpoints without the metric can be kept only as recent ones.
            policies.append(checkpoint_managers.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
        self._apart = source is not None and jax.process_count() > 1
        self._processes = _alone() if self._apart else ocp.options.MultiprocessingOptions()
        options = ocp.CheckpointManagerOptions(
            best_fn=rank,  # without it orbax does not write metrics
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,  # remains of saves that were killed
            read_only=read_only,
            multiprocessing_options=self._processes,
            create=not self._apart,
            # Else the leading process makes them for all.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False) if self._apart else None,
        )
        try:
            if self._apart:
                self._alias.path.mkdir(parents=True, exist_ok=True)
            handlers = _handlers(self._processes) if self._apart else None
            self.manager = ocp.CheckpointManager(self._alias.path, options=options, item_handlers=handlers)
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def save(self, state: State | dict[str, Any], step: int, metrics: dict[str, float] | None = None) -> None:
        """Writes the state in the background; returns when the state is copied from the device.

        Args:
            state: the state to save, or another tree of arrays.
            step: number of steps done.
            metrics: {"evaluation/metric": value} at this step, which decide on the best checkpoint.

        Raises:
            UserError: this write or an earlier one failed (a full disk, for example); older checkpoints are untouched.
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
        if not saved:  # orbax raises no error in this case
            raise UserError(f"{self.folder}: the checkpoint of step {step} was not written, because a newer one exists")

    def rank(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics to a saved checkpoint that has none, so that they decide on the best checkpoint.

        Args:
            step: step of the checkpoint.
            metrics: {"evaluation/metric": value} at this step.
        """
        value = metrics.get(self.best.metric, float("nan")) if self.best else float("nan")
        item = self.folder / str(step) / checkpoint_manager.METRIC_ITEM_NAME
        if self.best is None or not math.isfinite(value) or not item.parent.is_dir() or item.exists():
            return
        content = json.dumps({self.best.metric: value})

        def write() -> None:
            with tempfile.TemporaryDirectory(prefix=".metrics-", dir=self.folder.parent) as place:
                new = pathlib.Path(place) / item.name
                new.mkdir()
                (new / item.name).write_text(content)
                move_whole(new, item)

        self._change(write)
        parallel.together(self.manager.reload)
        self.wait()
        kept = {*self.steps()[: self.keep], self.manager.best_step()}
        for other in set(self.steps()) - kept:  # orbax removes others at the next save only, which may never come
            self.manager.delete(other)

    def _change(self, change: Callable[[], None]) -> None:
        """Changes the folder: once, or, where each process has one of its own, each of them."""
        (parallel.together if self._source else parallel.lead)(change)

    def wait(self) -> None:
        """Blocks until every write is finished."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise _write_error(self.folder, error) from error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.manager.close()
            self._alias.close()

    def prove(self) -> None:
        """Writes a small checkpoint beside the folder, reads it and removes it; nothing if there are checkpoints.

        Raises:
            UserError: the file system does not take a checkpoint, or does not give it back.
        """
        if self.steps():
            return
        folder = self.folder.with_name(f".{self.folder.name}-trial")
        everywhere = NamedSharding(Mesh(np.asarray(jax.devices()), ("all",)), PartitionSpec())
        numbers = np.arange(16, dtype=np.float32)
        saved = {"x": jax.make_array_from_callback(numbers.shape, everywhere, numbers.__getitem__)}
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), saved)
        trial = Checkpoints(folder, CheckpointConfig(), {}, source=self._source if self._apart else None)
        try:
            trial.save(saved, 1)
            trial.wait()
            if not self._apart:  # else each process has written some of it
                trial.restore(target, 1)
        except UserError as error:
            raise UserError(f"{self.folder.parent}: a checkpoint cannot be kept here ({error})") from error
        finally:
            trial.manager.close()
            trial._alias.close()
            if self._apart or parallel.leads():
                shutil.rmtree(folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def restore(self, target: Any, step: int | None = None, *, force: bool = False) -> tuple[Any, int] | None:
        """Restores the newest undamaged checkpoint.

        Damaged checkpoints that are newer are renamed to `damaged-STEP` in the parent folder, so that the run can save
        these steps again. If all are damaged, nothing is renamed.

        Args:
            target: a `State` of `jax.ShapeDtypeStruct` with shardings, for any mesh; or `Weights` of
                `jax.ShapeDtypeStruct`, which reads these parts alone, into host memory.
            step: step of the only checkpoint to read; None: the newest undamaged one.
            force: accept a checkpoint of a run with another identity.

        Returns:
            (the restored target, its step); None if there is no checkpoint.

        Raises:
            UserError: all checkpoints are damaged; there is no checkpoint of `step`, or it is damaged; the checkpoint
                belongs to another run or has arrays of other shapes; it cannot be read for a reason outside the files
                (permission, memory).
        """
        steps = self.steps() if step is None else [step]
        if step is not None and step not in self.steps():
            raise UserError(f"{self.folder}: no checkpoint of step {step} (there are: {self.steps()})")
        damaged: list[int] = []
        problem = ""
        for candidate in steps:
            try:
                # Another process may find its part damaged, before all compute checksums together.
                state, meta = parallel.together(lambda: self._checked(candidate, target, force))  # noqa: B023
                parallel.together(lambda: _verify(state, meta))  # noqa: B023
            except _DamagedError as error:
                problem = str(error)
                if parallel.leads():
                    log.warning("checkpoint %d is damaged and skipped: %s", candidate, problem)
                damaged.append(candidate)
                continue
            if damaged and not self.read_only:
                self._move_aside(damaged)
            return state, candidate
        if damaged:
            # A run that starts again in this folder would delete its metrics, so the user must choose another folder.
            raise UserError(
                f"{self.folder}: no sound checkpoint among steps {steps} (last problem: {problem}); nothing was "
                f"changed: restore a copy of one, or train in a new folder"
            )
        return None

    def identity_of(self, step: int) -> dict[str, Any]:
        """The identity of the run that saved the checkpoint of this step."""
        return self._meta(step)["identity"]

    def _checked(self, step: int, target: Any, force: bool) -> tuple[Any, dict[str, Any]]:
        """Reads the checkpoint of a step; returns it and its record.

        Raises:
            _DamagedError: it cannot be read.
            UserError: it belongs to another run, or its arrays have other shapes.
        """
        with _reading(self.folder, step):
            meta = self._meta(step)
        mismatch = _mismatch(meta, target)
        if mismatch:
            raise UserError(f"{self.folder}: the checkpoint of step {step} does not fit: {mismatch}")
        if meta["identity"] != self.identity and not force:
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} belongs to another run (identity "
                f"{digest(meta['identity'])}, this one is {digest(self.identity)}); --resume=force continues from it"
            )
        with _reading(self.folder, step):
            if self._source:
                self._source.fetch(step, _needed_by(target, self.folder / str(step) / "state"))
            return self._read(step, target), meta

    def _read(self, step: int, target: Any) -> Any:
        if not isinstance(target, Weights):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            return self.manager.restore(step, args=args)["state"]
        parts = _parts(target)
        host = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), parts)
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=self._processes)
        with ocp.Checkpointer(handler, multiprocessing_options=self._processes) as checkpointer:
            args = ocp.args.PyTreeRestore(item=parts, restore_args=host, partial_restore=True)
            return target._replace(**checkpointer.restore(self._alias.path / str(step) / "state", args=args))

    def _move_aside(self, steps: list[int]) -> None:
        def rename() -> None:
            for step in steps:
                aside = self.folder.parent / f"damaged-{step}"
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}-again")
                (self.folder / str(step)).rename(aside)
                log.warning("checkpoint %d is now %s", step, aside)

        def set_aside(source: Source) -> None:
            for step in steps:
                source.set_aside(step)

        if self._source is None:
            parallel.lead(rename)
        else:
            parallel.together(functools.partial(set_aside, self._source))
        self.manager.reload()

    def _meta(self, step: int) -> dict[str, Any]:
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def _alone() -> Any:
    """Returns the options of orbax with which this process writes into a folder of its own, and waits for no other."""
    one = jax.process_index()
    return ocp.options.MultiprocessingOptions(None, {one}, barrier_sync_key_prefix=f"process-{one}")


def _handlers(processes: Any) -> dict[str, Any]:
    """Returns handlers with which each process writes its shards into a folder of its own.

    Every shard is a file (without OCDBT), so that the files of all folders together are a checkpoint. Metadata of
    arrays (`.zarray`) are written by the leading process alone; other metadata, which are equal, by all. Replicas share
    the writing of large arrays only, or small ones would become a file for each device.
    """
    kinds = ocp.type_handlers
    arrays = kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST)
    registry = kinds.create_type_handler_registry((np.ndarray, kinds.NumpyHandler()), (jax.Array, arrays))
    state = ocp.StandardCheckpointHandler(multiprocessing_options=processes)
    state._impl = ocp.PyTreeCheckpointHandler(  # it takes no handlers of types itself
        multiprocessing_options=processes, use_ocdbt=False, type_handler_registry=registry
    )
    return {"state": state, "meta": ocp.JsonCheckpointHandler(multiprocessing_options=processes)}


_LEAST = 2**22  # bytes of the part of an array that a replica writes
_SHARD = re.compile(r"state/(?P<array>[^/]+)/(?P<place>\d+(\.\d+)*)")


def is_shard(name: str) -> bool:
    """Returns True for the file of a shard, or of a block of it, in a checkpoint: `state/params.layer.kernel/0.3`."""
    return _SHARD.fullmatch(name) is not None


def _needed_by(target: Any, state: pathlib.Path) -> Callable[[str], bool]:
    """Returns a function that tells for the name of a file if reading `target` in this process needs it.

    Args:
        target: the target of a restore.
        state: folder of the saved state, with the metadata of its arrays.
    """
    parts = jax.tree_util.tree_leaves_with_path(_parts(target) if isinstance(target, Weights) else target)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in parts}

    @functools.cache
    def regions(array: str) -> list[tuple[slice, ...]]:
        """Returns the parts of an array that this process reads."""
        shape, sharding = leaves[array].shape, getattr(leaves[array], "sharding", None)
        if sharding is None or isinstance(target, Weights):
            return [tuple(slice(0, size) for size in shape)]
        indices = sharding.addressable_devices_indices_map(shape).values()
        return [tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape)) for index in indices]

    @functools.cache
    def block(array: str) -> list[int]:
        return json.loads((state / array / ".zarray").read_text())["chunks"]

    def is_needed(name: str) -> bool:
        shard = _SHARD.fullmatch(name)
        if shard is None or shard["array"] not in leaves:
            return shard is None
        sizes = block(shard["array"])
        starts = [int(number) * size for number, size in zip(shard["place"].split("."), sizes)]
        return any(
            all(at < own.stop and own.start < at + size for at, size, own in zip(starts, sizes, region))
            for region in regions(shard["array"])
        )

    return is_needed


def _parts(target: Weights) -> dict[str, Any]:
    return {name: tree for name, tree in target._asdict().items() if jax.tree.leaves(tree)}


class _Alias:
    """The name under which orbax sees a folder.

    Orbax searches its folders with patterns, and tensorstore reads "\\" and ":/" as parts of an address. A folder whose
    path has such characters gets a symbolic link from a temporary folder.
    """

    def __init__(self, folder: pathlib.Path, make: bool):
        self.path, self._place = folder, None
        if not re.search(r"[][*?\\]|:(/|$)", str(folder)):
            return
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            self._place = tempfile.TemporaryDirectory(prefix="ssljax-")
            self.path = pathlib.Path(self._place.name).resolve() / "checkpoints"
            self.path.symlink_to(folder)
        except OSError as error:
            raise _write_error(folder, error) from error

    def close(self) -> None:
        if self._place is not None:
            self._place.cleanup()


def _verify(state: Any, meta: dict[str, Any]) -> None:
    """Compares a state with its record.

    Raises:
        _DamagedError: they differ.
    """
    wrong = [path for path, leaf in describe(state).items() if leaf != meta["leaves"][path]]
    if wrong:
        raise _DamagedError(f"the checksum of {wrong[0]} is wrong ({len(wrong)} arrays in all)")


def describe(state: Any) -> dict[str, dict[str, Any]]:
    """Returns {path of each leaf: {"shape", "dtype", "checksum"}}. Arrays of NumPy stay on the host."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    leaves = jax.tree.leaves(state)
    on_device = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    sums = iter(jax.device_get(_checksums(on_device)) if on_device else ())
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "checksum": int(next(sums)) if isinstance(leaf, jax.Array) else host_checksum(leaf),
        }
        for path, leaf in zip(paths, leaves)
    }


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [checksum(leaf) for leaf in leaves]


@jax.jit  # leaves of one shape and type share a trace
def checksum(x: jax.Array) -> jax.Array:
    """Checksum of an array, uint32: the sum over its words of a hash of the word and its index.

    The order of an integer sum does not matter, so the checksum is the same on every mesh. The hash of a word at a
    given index is invertible, so a change of any single word changes the checksum. It is no linear function of the
    bits, so changes of several words (flipped signs, exchanged rows) do not cancel, except by chance (2^-32).
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # An element of 8 bytes becomes two words, on a last axis.
    words = jax.lax.bitcast_convert_type(x, _UNSIGNED[min(x.dtype.itemsize, 4)]).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mixed(words ^ _mixed(place)), dtype=jnp.uint32)


def host_checksum(x: np.ndarray) -> int:
    """Returns `checksum` of an array in host memory, a block at a time."""
    flat = np.ascontiguousarray(x).reshape(-1)
    words = flat.view(_UNSIGNED[min(flat.dtype.itemsize, 4)])
    total = 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32)
        place = np.arange(start, start + block.size, dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(_mixed(block ^ _mixed(place)), dtype=np.uint64))
    return total % 2**32


_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_BLOCK = 2**20  # words


def _mixed(x: Any) -> Any:
    """An invertible hash of uint32 numbers: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _mismatch(meta: dict[str, Any], target: Any) -> str:
    """The reason why a checkpoint does not fit `target`; "" if it fits."""
    if meta["format"] != FORMAT:
        return f"format {meta['format']}, this version reads {FORMAT}; use the version of ssljax that wrote it"
    required = {
        jax.tree_util.keystr(path): (list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    saved = {path: (leaf["shape"], leaf["dtype"]) for path, leaf in meta["leaves"].items()}
    for path in required if isinstance(target, Weights) else [*required, *saved]:
        if required.get(path) != saved.get(path):
            return f"{path}: saved as {saved.get(path, 'nothing')}, required {required.get(path, 'nothing')}"
    return ""


class _DamagedError(Exception):
    """The files of a checkpoint cannot be read, or their content is not the saved one."""


# Codes of tensorstore errors whose cause is outside the files.
_CAUSE_OUTSIDE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


@contextlib.contextmanager
def _reading(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Turns exceptions of a read into UserError (permission, memory, ...) or _DamagedError (everything else)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, PermissionError | MemoryError) or any(code in str(error) for code in _CAUSE_OUTSIDE):
            raise UserError(f"{folder}: cannot read the checkpoint of step {step}: {_first_line(error)}") from error
        raise _DamagedError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _write_error(folder: pathlib.Path, error: Exception) -> UserError:
    text = str(error)
    full = any(mark in text for mark in ("No space left", "ENOSPC", "File too large"))
    why = "the disk is full" if full else _first_line(error)
    return UserError(f"{folder}: cannot write a checkpoint: {why}; the last good checkpoint is kept")
