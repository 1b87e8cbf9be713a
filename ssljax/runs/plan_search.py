"""Search for the fastest mesh, recomputation and number of micro-batches that fit, by compilation: `plan --search`."""

import collections
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import RunConfig
from ssljax.data import DataSpec
from ssljax.parallel import presets
from ssljax.parallel.topology import Topology
from ssljax.report import Table
from ssljax.runs.plans import Plan, plan, size_text, time_text

log = logging.getLogger(__name__)


class Trial(NamedTuple):
    """A setting of a search.

    Attributes:
        overrides: {key of the config: value}.
        plan: its plan.
    """

    overrides: dict[str, Any]
    plan: Plan

    @property
    def words(self) -> str:
        """The overrides as on the command line."""
        return " ".join(f"--config.{key}={value}" for key, value in self.overrides.items())


@dataclasses.dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        trials: the settings that were compiled, in order.
    """

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The setting that fits with the shortest step; None if none fits."""
        fitting = [trial for trial in self.trials if trial.plan.fits and trial.plan.roofline]
        return min(fitting, key=lambda trial: trial.plan.roofline.serial, default=None)  # type: ignore[union-attr]

    def to_json(self) -> dict[str, Any]:
        """Returns the search as JSON values."""
        trials = [{"overrides": trial.overrides, "plan": trial.plan.to_json()} for trial in self.trials]
        return {"best": None if self.best is None else self.best.overrides, "trials": trials}

    def tables(self) -> list[Table]:
        """Returns a table with a row for each setting, and those of the plan of the best one."""
        rows = []
        for trial in self.trials:
            found = trial.plan
            axes = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items() if size > 1) or "one device"
            memory = "unknown" if found.needed is None else size_text(found.needed)
            step = "does not fit" if not found.fits or not found.roofline else time_text(found.roofline.serial)
            remat = str(trial.overrides.get("model.remat", "-"))
            rows.append([axes, remat, str(found.microbatches), memory, step])
        best = self.best
        note = "no setting fits" if best is None else f"fastest that fits: {best.words}"
        columns = ["mesh", "remat", "microbatches", "memory of a device", "time of a step"]
        return [Table(columns, rows, [note]), *([] if best is None else best.plan.tables())]


def search(config: RunConfig, target: Topology, spec: DataSpec | None = None) -> Search:
    """Compiles the step with several meshes; for each, more recomputation and micro-batches until it fits.

    Args:
        config: the checked config. Its mesh axes `context` and `expert` stay.
        target: the topology.
        spec: description of the data, which are then not opened; None: they are opened and described.

    Raises:
        UserError: no mesh fits the devices and the batch.
    """
    trials: list[Trial] = []
    refused: UserError | None = None
    for mesh in meshes(config, target):
        try:
            trials += _until_it_fits(config, mesh, target, spec)
        except UserError as error:  # no layout of the network has this mesh, or it does not divide the batch
            refused = error
            log.info("%s", error)
    if not trials and refused is not None:
        raise refused
    return Search(tuple(trials))


def meshes(config: RunConfig, target: Topology) -> list[dict[str, int]]:
    """Sizes of `data`, `fsdp` and `tensor` to be tried: split by hosts, or not at all, with 1 to 8 parts of layers."""
    total, other = len(target.devices), config.mesh.context * config.mesh.expert
    if total % other:
        raise UserError(f"mesh: context={config.mesh.context} x expert={config.mesh.expert} does not divide {total}")
    count = total // other
    hosts = len(collections.Counter(device.process_index for device in target.devices))
    found = []
    for tensor in (1, 2, 4, 8):
        for data in dict.fromkeys((count // tensor, 1, hosts, count // tensor // 8)):
            if data and count % (data * tensor) == 0:
                sizes = {"data": data, "fsdp": count // data // tensor, "tensor": tensor}
                if (tensor == 1 or data < count // tensor) and sizes not in found:
                    found.append(sizes)
    return found


def _until_it_fits(config: RunConfig, mesh: dict[str, int], target: Topology, spec: DataSpec | None) -> Iterator[Trial]:
    """Yields the settings of a mesh, the fastest first, up to the first that fits."""
    levels: tuple[str | None, ...] = presets.REMATS if hasattr(config.model, "remat") else (None,)
    for microbatches in presets.MICROBATCHES:
        if microbatches > 1 and config.batch_size % (microbatches * mesh["data"] * mesh["fsdp"] * config.mesh.expert):
            return
        for remat in levels:
            overrides: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh.items()}
            overrides |= {"microbatches": microbatches} | ({} if remat is None else {"model.remat": remat})
            trial = Trial(overrides, plan(_changed(config, mesh, microbatches, remat), target, spec))
            log.info("%s: %s", trial.words, "fits" if trial.plan.fits else "does not fit")
            yield trial
            if trial.plan.fits:
                return
            if trial.plan.state_alone > trial.plan.available:  # neither recomputation nor micro-batches help
                return


def _changed(config: RunConfig, mesh: dict[str, int], microbatches: int, remat: str | None) -> RunConfig:
    model = config.model if remat is None else schema.replace(config.model, remat=remat)
    changed = dataclasses.replace(config.mesh, preset=None, **mesh)  # type: ignore[arg-type]
    return dataclasses.replace(config, mesh=changed, microbatches=microbatches, model=model)
