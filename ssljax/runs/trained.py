"""The trained model of a run, read from its workdir without opening its data."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints, Weights
from ssljax.train.program import batch_shapes, variable_shapes


class Trained(NamedTuple):
    """The model of a run at a checkpoint.

    Attributes:
        objective: the objective of the run, with its module as `model`.
        params: the parameters of the objective; averaged ones if the run keeps an average.
        extra: the other variables of the objective.
        step: number of the checkpoint.
        config: content of config.json.
        identity: identity of the run, from the checkpoint.
        folder: the workdir.
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

    @property
    def of_teacher(self) -> bool:
        """True if `model_params` belong to `extra`, which no optimiser updates: those of a teacher."""
        extra = {id(leaf) for leaf in jax.tree.leaves(self.extra)}
        return any(id(leaf) in extra for leaf in jax.tree.leaves(self.model_params))


def read_trained(folder: str | pathlib.Path, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Trained:
    """Reads the trained model of a workdir.

    Args:
        folder: the workdir.
        step: number of the checkpoint; None: the newest.
        mesh: the arrays are sharded over it; None: arrays on the host.

    Raises:
        UserError: the folder is not a workdir, has no checkpoint, or a damaged one.
    """
    workdir = Workdir(folder)
    if not workdir.is_run():
        raise UserError(f"{folder}: is not a workdir of `ssljax train` (config.json and data.json of a run)")
    config, spec = workdir.config_values(), workdir.data_spec()
    with workdir.blaming_config():
        objective = objectives.create({"objective": config["objective"], "model": config["model"]}, spec)
    shapes = variable_shapes(objective, batch_shapes(spec, config["batch_size"]), mesh)
    target = Weights(shapes.params, shapes.extra, shapes.params if config.get("ema") is not None else None)
    workdir.take_checkpoints(step)
    checkpoints = Checkpoints(workdir.checkpoints, CheckpointConfig(), {}, read_only=True, source=workdir.source)
    try:
        restored = checkpoints.restore(target, step, force=True)
        if restored is None:
            raise UserError(f"{folder}: has no checkpoint yet")
        weights, at = restored
        identity = checkpoints.identity_of(at)
    finally:
        checkpoints.close()
    params = weights.params if weights.ema is None else weights.ema
    return Trained(objective, params, weights.extra, at, config, identity, workdir.path)
