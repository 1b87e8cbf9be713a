"""Start-up of a process that may be one of several: its place in the job, and the connection to the others.

`detect` reads the place from the environment: flags of the command (as variables), Open MPI, SLURM, TPUs of Kubernetes,
JobSet, MPICH. `start` connects the processes with `jax.distributed.initialize`.
"""

import dataclasses
import glob
import importlib.util
import logging
import os
import re
import sys
import types
from collections.abc import Mapping

import jax

from ssljax.base.errors import UserError
from ssljax.parallel import roll_call

log = logging.getLogger(__name__)

COORDINATOR, PROCESS_ID, NUM_PROCESSES = "SSLJAX_COORDINATOR", "SSLJAX_PROCESS_ID", "SSLJAX_NUM_PROCESSES"
START_SECONDS, HEARTBEAT_SECONDS = "SSLJAX_START_SECONDS", "SSLJAX_HEARTBEAT_SECONDS"

_FLAGS = {COORDINATOR: "--coordinator", PROCESS_ID: "--process-id", NUM_PROCESSES: "--num-processes"}
_TPU_PORT = 8482  # the port at which JAX's own detection expects the coordinator of a TPU slice
_JOBSET_PORT = 1234  # as in the manifests of xpk
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Job:
    """The place of this process in a job of several processes.

    Attributes:
        coordinator: HOST:PORT at which process 0 connects the others; empty if the environment does not tell it.
        process_id: number of this process, from 0.
        num_processes: number of processes of the job.
        source: where this was found, for messages.
        local_devices: the GPUs of this process, as indices of those that it sees; None: all that it sees.
    """

    coordinator: str
    process_id: int
    num_processes: int
    source: str
    local_devices: tuple[int, ...] | None = None


def detect(environ: Mapping[str, str]) -> Job | None:
    """Returns the place in the job that the environment describes; None: a single process.

    Raises:
        UserError: a setting is missing, is not a number, or contradicts another.
    """
    given = [name for name in _FLAGS if environ.get(name)]
    if NUM_PROCESSES in given and _number(environ, NUM_PROCESSES, 1) == 1 and PROCESS_ID not in given:
        return None
    if PROCESS_ID in given or NUM_PROCESSES in given:
        job = _explicit(environ)
    else:
        finders = (_open_mpi, _slurm, _tpu_slices, _jobset, _mpich)
        job = next((job for find in finders if (job := find(environ))), None)
    if job is None and given:
        raise _missing(given)
    if job is None or (job.num_processes == 1 and job.process_id == 0):
        return None
    if job.process_id >= job.num_processes:
        what = f"the process id (of {job.source})"
        raise UserError(f"{what}: got {job.process_id}, must be below the number of processes, {job.num_processes}")
    coordinator = environ.get(COORDINATOR) or job.coordinator
    if not coordinator:
        raise UserError(
            f"{job.source} started {job.num_processes} processes, but does not tell where process 0 is: give "
            "--coordinator HOST:PORT"
        )
    return dataclasses.replace(job, coordinator=_address(coordinator))


def start(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    *,
    seconds: float | None = None,
    heartbeat_seconds: float | None = None,
) -> Job | None:
    """Connects this process with the others of its job, if there are any. To be called before anything uses a device.

    Args:
        coordinator: HOST:PORT of process 0. This and the next two win over the environment.
        process_id: number of this process, from 0.
        num_processes: number of processes; 1: a single process, whatever the environment says.
        seconds: time within which all processes have to come; default $SSLJAX_START_SECONDS, or else 300.
        heartbeat_seconds: time after which a process that gives no sign of life counts as dead, and the others end;
            default $SSLJAX_HEARTBEAT_SECONDS, or else 50.

    Returns:
        The place of this process; None: it is alone, or `jax.distributed` was initialised before.

    Raises:
        UserError: the settings are wrong or contradict those of other processes, or not all processes came in time.
    """
    if jax.distributed.is_initialized():
        return None
    given = {COORDINATOR: coordinator, PROCESS_ID: process_id, NUM_PROCESSES: num_processes}
    environ = {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
    waits = {
        "initialization_timeout": int(seconds or _number(environ, START_SECONDS, 1, 300)),
        "heartbeat_timeout_seconds": int(heartbeat_seconds or _number(environ, HEARTBEAT_SECONDS, 1, 50)),
    }
    job = detect(environ)
    if job:
        roll_call.hold(job.coordinator, job.process_id, job.num_processes, waits["initialization_timeout"])
        place = {"coordinator_address": job.coordinator, "process_id": job.process_id}
        _initialize(
            **place,
            num_processes=job.num_processes,
            local_device_ids=job.local_devices,
            cluster_detection_method="deactivate",
            **waits,
        )
        log.info("process %d of %d (%s, %s)", job.process_id, job.num_processes, job.source, job.coordinator)
    elif NUM_PROCESSES not in environ and _on_tpu_vm(environ):
        _initialize(cluster_detection_method="gcetpu", **waits)
    return job


def coordinator_host() -> str:
    """Returns the host at which process 0 connects the others, which all of them can reach."""
    from jax._src import distributed  # jax has no public access to the address

    return (distributed.global_state.coordinator_address or "localhost").rpartition(":")[0]


def leave(code: int) -> int:
    """Ends this process at once if it is one of several, and otherwise returns the exit code.

    At a normal exit, JAX waits minutes for the other processes, which may wait for this one in a communication.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _initialize(**settings: object) -> None:
    # JAX would catch SIGTERM for its own agreement on preemptions, but signals are handled by `base.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**settings)  # type: ignore[arg-type]
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise UserError("parallel.start() comes too late: call it before anything uses a device") from error
    except (ValueError, OSError) as error:
        if settings["cluster_detection_method"] != "gcetpu":
            raise
        raise UserError(
            f"the metadata of this TPU machine do not describe a job ({error}); if it is a single process, give "
            "--num-processes 1"
        ) from error
    shown = sys.excepthook

    def show_and_leave(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        shown(kind, error, trace)
        leave(130 if kind is KeyboardInterrupt else 1)

    sys.excepthook = show_and_leave


def _on_tpu_vm(environ: Mapping[str, str]) -> bool:
    """Returns True on a machine with TPUs whose metadata server knows the other machines of the slice."""
    wanted = environ.get("JAX_PLATFORMS", "tpu")
    if "tpu" not in wanted or {"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"} & environ.keys():
        return False
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _explicit(environ: Mapping[str, str]) -> Job | None:
    given = [name for name in _FLAGS if environ.get(name)]
    if len(given) < len(_FLAGS):
        raise _missing(given)
    return Job("", _number(environ, PROCESS_ID, 0), _number(environ, NUM_PROCESSES, 1), "the flags")


def _missing(given: list[str]) -> UserError:
    missing, known = ([f for name, f in _FLAGS.items() if (name in given) is there] for there in (False, True))
    return UserError(
        f"{' and '.join(missing)}: missing; {' and '.join(known)} (or ${given[0]}) alone do not describe a job"
    )


def _open_mpi(environ: Mapping[str, str]) -> Job | None:
    """Open MPI. Its version 4 tells the addresses of `mpirun`, on whose host process 0 runs."""
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")  # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    found = re.match(r"(\d+)\..*?tcp://([^,:]+)", uri)
    ranks = [_number(environ, f"OMPI_COMM_WORLD_{name}", 0) for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    coordinator = f"{found[2]}:{_port(int(found[1]) >> 12)}" if found else ""
    return Job(coordinator, ranks[0], ranks[1], "Open MPI", local_gpus(environ, ranks[2], ranks[3]))


def _slurm(environ: Mapping[str, str]) -> Job | None:
    """SLURM. Only a step, which `srun` starts, has several processes.

    A batch script, and a shell of `salloc`, is one process, although SLURM_NTASKS has the tasks of the whole job.
    """
    if "SLURM_PROCID" not in environ or "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    tasks = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = _number(environ, "SLURM_NODEID", 0, 0)
    here = tasks[node] if node < len(tasks) else 1
    port = _port(_number(environ, "SLURM_JOB_ID", 0, 0) * 61 + _number(environ, "SLURM_STEP_ID", 0, 0))
    return Job(
        f"{first_host(environ.get('SLURM_STEP_NODELIST', 'localhost'))}:{port}",
        _number(environ, "SLURM_PROCID", 0),
        _number(environ, "SLURM_STEP_NUM_TASKS", 1),
        "SLURM",
        local_gpus(environ, _number(environ, "SLURM_LOCALID", 0, 0), here),
    )


def _tpu_slices(environ: Mapping[str, str]) -> Job | None:
    """TPU slices on Kubernetes, whose hosts are numbered by the environment, and slices by the Megascale variables."""
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if not hosts or "TPU_WORKER_ID" not in environ:
        return None
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    place = _number(environ, "MEGASCALE_SLICE_ID", 0, 0) * len(hosts) + _number(environ, "TPU_WORKER_ID", 0)
    number = _number(environ, "MEGASCALE_NUM_SLICES", 1, 1) * len(hosts)
    return Job(f"{first.partition(':')[0]}:{_TPU_PORT}", place, number, "TPU slices")


def _jobset(environ: Mapping[str, str]) -> Job | None:
    """A JobSet of Kubernetes with the variables of launch/gke/jobset.yaml, which xpk sets too."""
    if "JOB_COMPLETION_INDEX" not in environ or "JAX_PROCESS_COUNT" not in environ:
        return None
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address and ":" not in address:
        address = f"{address}:{environ.get('JAX_COORDINATOR_PORT', _JOBSET_PORT)}"
    pods = _number(environ, "PROCESSES_IN_JOB", 1, 1)
    place = _number(environ, "JOB_INDEX", 0, 0) * pods + _number(environ, "JOB_COMPLETION_INDEX", 0)
    return Job(address, place, _number(environ, "JAX_PROCESS_COUNT", 1), "JobSet")


def _mpich(environ: Mapping[str, str]) -> Job | None:
    """MPICH, Intel MPI and others of their kind, which do not tell the address of process 0."""
    if "PMI_RANK" not in environ or "PMI_SIZE" not in environ:
        return None
    here = _number(environ, "MPI_LOCALRANKID", 0, 0), _number(environ, "MPI_LOCALNRANKS", 1, 1)
    return Job("", _number(environ, "PMI_RANK", 0), _number(environ, "PMI_SIZE", 1), "MPI", local_gpus(environ, *here))


def first_host(nodes: str) -> str:
    """The first host of a node list of SLURM: "gpu001" of "gpu[001-004,7],login"."""
    first = re.match(r"(?:[^\[\],\s]|\[\d[\d,-]*\])+", nodes)
    if not first:
        raise UserError(f"SLURM_STEP_NODELIST: got {nodes!r}, must be a list of hosts such as gpu[001-004]")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def tasks_per_node(text: str) -> list[int]:
    """Numbers of tasks of SLURM's nodes: [4, 4, 1] of "4(x2),1"."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def local_gpus(environ: Mapping[str, str], rank: int, processes: int) -> tuple[int, ...] | None:
    """The GPUs of one of several processes of a machine, as indices of those that it sees; None: all of them.

    A scheduler may show all GPUs of the machine to each process, which then takes its share, or to each its own.

    Args:
        environ: the environment.
        rank: number of this process on its machine.
        processes: number of processes on the machine.

    Raises:
        UserError: the processes cannot share the GPUs evenly, or it is unclear which belong to whom.
    """
    platforms = environ.get("JAX_PLATFORMS", "gpu")
    if processes == 1 or "JAX_LOCAL_DEVICE_IDS" in environ or not re.search("gpu|cuda|rocm", platforms):
        return None
    total = _number(environ, "SLURM_GPUS_ON_NODE", 0) if environ.get("SLURM_GPUS_ON_NODE") else None
    shown = next((environ[name].split(",") for name in _VISIBLE if name in environ), None)
    seen = total if shown is None else sum(name not in ("", "NoDevFiles", "-1") for name in shown)
    if seen is None:
        return (rank,)  # nothing is known of GPUs, as on machines without
    if seen == 0 or (seen < processes if total is None else seen < total and seen * processes <= total):
        return None  # each process sees its own
    if (total is not None and seen < total) or seen % processes:
        raise UserError(
            f"{processes} processes on a machine see {seen} of {total or seen} GPUs each, which gives no even shares: "
            "ask for one process per GPU (srun --gpus-per-task=1) or one per machine (--ntasks-per-node=1)"
        )
    share = seen // processes
    return tuple(range(rank * share, (rank + 1) * share))


def _port(number: int) -> int:
    """A port above those that the system gives to clients, which jobs of other numbers hardly share."""
    return 61440 + number % 4096


def _address(text: str) -> str:
    found = re.fullmatch(r"([^\s:\[\]]+|\[[\da-fA-F:]+\]):(\d{1,5})", text)
    if not found or not 0 < int(found[2]) < 65536:
        raise UserError(f"--coordinator: got {text!r}, must be HOST:PORT of process 0, such as node1:12345")
    return text


def _number(environ: Mapping[str, str], name: str, least: int, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < least:
        shown = f"{_FLAGS[name]} (or ${name})" if name in _FLAGS else f"${name}"
        raise UserError(f"{shown}: got {text!r}, must be a whole number, at least {least}")
    return int(text)
