"""What a run has learned, read from its workdir; its data are not opened."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from ssljax import data, objectives, parallel
from ssljax.base.errors import UserError
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints, Part
from ssljax.train.state import abstract_variables


class Learned(NamedTuple):
    """A checkpoint of a run.

    objective: with its model. params: those that evaluations use, the averaged ones where the run keeps them.
    config: as in config.json. identity: of the run, as the checkpoint has it.
    """

    objective: Any
    params: Any
    extra: Any
    step: int
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    folder: pathlib.Path

    @property
    def model_params(self) -> Any:
        """The parameters of `objective.model`."""
        return self.objective.model_params(self.params, self.extra)


def is_workdir(folder: pathlib.Path) -> bool:
    """Whether a folder holds the config of a run."""
    config = folder / "config.json"
    return config.is_file() and (folder / "data.json").is_file() and "objective" in read_json(config)


def read(folder: pathlib.Path, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Learned:
    """The checkpoint of a step (the newest if None), split over a mesh; without one, arrays of the host.

    Raises:
        UserError: no workdir, no checkpoint, a damaged one.
    """
    if not is_workdir(folder):
        raise UserError(f"{folder}: is not a workdir of `ssljax train` (config.json and data.json of a run)")
    config = read_json(folder / "config.json")
    spec = data.DataSpec.from_json((folder / "data.json").read_text())
    with blaming(folder / "config.json"):
        objective = objectives.create({"objective": config["objective"], "model": config["model"]}, spec)
    zeros = data.device_batch(spec.zeros(config["batch_size"]))
    shapes, axes = abstract_variables(objective, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), zeros))
    if mesh is not None:
        shapes = jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
            shapes,
            parallel.shardings(axes, shapes, mesh),
        )
    target = Part(shapes.params, shapes.extra, shapes.params if config.get("ema") is not None else None)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), {}, read_only=True)
    try:
        restored = checkpoints.restore(target, step, force=True)
        if restored is None:
            raise UserError(f"{folder}: has no checkpoint yet")
        part, at = restored
        identity = checkpoints.identity_of(at)
    finally:
        checkpoints.close()
    params = part.params if part.ema is None else part.ema
    return Learned(objective, params, part.extra, at, config, identity, folder)


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file (UserError when it is damaged)."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or take a new workdir") from error


@contextlib.contextmanager
def blaming(path: pathlib.Path) -> Iterator[None]:
    """A mistake in the config that a run wrote is that of no user: the line names its file."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{path}: {error}; use the version of ssljax that wrote it, or `ssljax train --resume=force`"
        ) from error
