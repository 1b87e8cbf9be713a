"""Places of the workers of a study: GPUs of this machine, or an array of jobs on SLURM."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.scaling.driver import Worker
from ssljax.scaling.ledger import Ledger


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
        """Works until nothing is left to do."""
        Worker(Ledger(self.store), self.study, stack=self.stack).work()

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


def devices_of_jobs(jobs: int, per_run: int, visible: str | None = None) -> Sequence[str]:
    """Returns the numbers of the GPUs of each trainer, as CUDA_VISIBLE_DEVICES takes them.

    Args:
        jobs: number of trainers.
        per_run: GPUs of each.
        visible: the value of CUDA_VISIBLE_DEVICES; None: that of the environment, without one all.

    Raises:
        UserError: more are needed than are visible.

    >>> devices_of_jobs(2, 2, "4,5,6,7")
    ['4,5', '6,7']
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    names = given.split(",") if given else [str(i) for i in range(jobs * per_run)]
    if len(names) < jobs * per_run:
        raise UserError(f"--gpus-per-run: {jobs} jobs need {jobs * per_run} GPUs, but {len(names)} are visible")
    return [",".join(names[i * per_run : (i + 1) * per_run]) for i in range(jobs)]
