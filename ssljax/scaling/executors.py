"""Places of the workers of a study: GPUs and TPU chips of this machine, or an array of jobs on SLURM."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ssljax.base.errors import UserError
from ssljax.scaling.driver import Worker
from ssljax.scaling.ledger import Ledger
from ssljax.scaling.team import join


class Job:
    """The work of one job: runs of a study until none is left. It can be pickled.

    Args:
        store: folder of the store, which all jobs see.
        study: name of the study.
        stack: see `ssljax.scaling.driver.Worker`.
    """

    def __init__(self, store: str, study: str, stack: int = 1):
        self.store, self.study, self.stack = store, study, stack

    def __call__(self) -> None:
        """Works until nothing is left to do; the tasks of one job train each run together."""
        team = join()
        if team is None:
            Worker(Ledger(self.store), self.study, stack=self.stack).work()
        elif not team.leads:
            team.follow(pathlib.Path(self.store))
        else:
            with team.leading():
                Worker(Ledger(self.store), self.study, team=team).work()

    def checkpoint(self) -> Any:
        """Returns the job that continues this one, which `submitit` calls before the time of a job ends."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    store: pathlib.Path,
    study: str,
    jobs: int,
    parameters: Mapping[str, Any],
    cluster: str = "slurm",
    stack: int = 1,
) -> list[str]:
    """Submits an array of jobs, each of which is a worker of the study. Returns their ids.

    Args:
        store: folder of the store, on a file system that all jobs see.
        study: name of the study.
        jobs: number of jobs.
        parameters: parameters of `submitit`, such as timeout_min, slurm_partition, gpus_per_node.
        cluster: "slurm"; "local": processes of this machine that submitit watches.
        stack: see `ssljax.scaling.driver.Worker`.

    Raises:
        UserError: submitit is missing or refuses the parameters, or there is no SLURM here.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor slurm: needs submitit; pip install 'ssljax[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=store / "jobs", cluster=cluster)
        executor.update_parameters(**parameters)
        with executor.batch():
            submitted = [executor.submit(Job(str(store.resolve()), study, stack)) for _ in range(jobs)]
    except Exception as error:  # submitit raises its own types, RuntimeError, NameError, and errors of sbatch
        raise UserError(f"--executor slurm: {type(error).__name__}: {error}") from error
    return [job.job_id for job in submitted]


def gpus_of_jobs(jobs: int, per_run: int, visible: str | None = None) -> list[dict[str, str]]:
    """Returns the variables that give each trainer GPUs of its own.

    Args:
        jobs: number of trainers.
        per_run: GPUs of each.
        visible: the value of CUDA_VISIBLE_DEVICES; None: that of the environment, without one all.

    Raises:
        UserError: more are needed than are visible.

    >>> gpus_of_jobs(2, 2, "4,5,6,7")
    [{'CUDA_VISIBLE_DEVICES': '4,5'}, {'CUDA_VISIBLE_DEVICES': '6,7'}]
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    names = given.split(",") if given else [str(i) for i in range(jobs * per_run)]
    if len(names) < jobs * per_run:
        raise UserError(f"--gpus-per-run: {jobs} jobs need {jobs * per_run} GPUs, but {len(names)} are visible")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[i * per_run : (i + 1) * per_run])} for i in range(jobs)]


_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # of the chips that a process may hold, in space


def chips_of_jobs(jobs: int, per_run: int) -> list[dict[str, str]]:
    """Returns the variables that give each trainer TPU chips of this host, as a slice of its own.

    Args:
        jobs: number of trainers.
        per_run: chips of each: 1, 2, 4 or 8.

    Raises:
        UserError: chips of this number are no slice.

    >>> chips_of_jobs(2, 1)[1]["TPU_VISIBLE_CHIPS"]
    '1'
    """
    if per_run not in _BOUNDS:
        raise UserError(f"--chips-per-run: got {per_run}, must be 1, 2, 4 or 8")
    alone = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS[per_run], "TPU_SKIP_MDS_QUERY": "1"}
    first = [i * per_run for i in range(jobs)]
    return [{**alone, "TPU_VISIBLE_CHIPS": ",".join(map(str, range(i, i + per_run)))} for i in first]
