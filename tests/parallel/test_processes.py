"""Places in a job are read from recorded environments; processes find each other, or say in one line why not."""

import os
import socket
import subprocess
import sys

import pytest

from ssljax import cli
from ssljax.base.errors import UserError
from ssljax.parallel.processes import Job, detect, first_host, local_gpus, tasks_per_node

# What SLURM 22.05 sets in tasks (srun), batch scripts and shells on two nodes with four GPUs each; recorded with
# `env` as the command.
NODES = {"SLURM_JOB_ID": "11", "SLURM_JOB_NODELIST": "gpu[001-002]", "SLURM_GPUS_ON_NODE": "4"}
STEP = {**NODES, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[001-002]", "SLURM_STEP_NUM_NODES": "2"}
ALL_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_GPUS": "0,1,2,3"}


def task(rank, tasks, per_node, local, node, **others):
    counts = {"SLURM_NTASKS": str(tasks), "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": per_node}
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
    return {**STEP, **counts, **place, **others}


SLURM_TASKS = {
    "srun -N2 --ntasks-per-node=1 --gpus-per-node=4": (task(1, 2, "1(x2)", 0, 1, **ALL_GPUS), 1, 2, None),
    "srun -N2 --ntasks-per-node=4 --gpus-per-node=4": (task(6, 8, "4(x2)", 2, 1, **ALL_GPUS), 6, 8, (2,)),
    "srun -N2 --ntasks-per-node=2 --gpus-per-node=4": (task(3, 4, "2(x2)", 1, 1, **ALL_GPUS), 3, 4, (2, 3)),
    "srun -N2 --ntasks-per-node=4 --gpus-per-task=1": (
        task(7, 8, "4(x2)", 3, 1, CUDA_VISIBLE_DEVICES="3", SLURM_STEP_GPUS="3"),
        *(7, 8, None),
    ),
    "srun -N2 --ntasks-per-node=2 --gpus-per-task=2": (
        task(1, 4, "2(x2)", 1, 0, CUDA_VISIBLE_DEVICES="2,3", SLURM_STEP_GPUS="2,3"),
        *(1, 4, None),
    ),
    "srun -N2 -n3 --gpus-per-task=1": (
        task(2, 3, "2,1", 0, 1, CUDA_VISIBLE_DEVICES="0", SLURM_GPUS_ON_NODE="1", SLURM_STEP_GPUS="0"),
        *(2, 3, None),
    ),
}


@pytest.mark.parametrize("command", SLURM_TASKS)
def test_tasks_of_slurm_use_all_gpus_of_their_node(command):
    environ, rank, tasks, gpus = SLURM_TASKS[command]
    assert detect(environ) == Job(f"gpu001:{61440 + 11 * 61}", rank, tasks, "SLURM", gpus)


ONE_PROCESS = {
    "a machine": {},
    "srun -n1": task(0, 1, "1", 0, 0, SLURM_STEP_NODELIST="gpu001"),
    # A batch script without srun is one process, although the job has eight tasks.
    "sbatch -N2 --ntasks-per-node=4": {
        **NODES,
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_TASKS_PER_NODE": "4(x2)",
    },
    "salloc -N2 --ntasks-per-node=4": {**NODES, "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"},
    # With LaunchParameters=use_interactive_step, the shell is a step of one task.
    "salloc, interactive step": {
        **task(0, 1, "1", 0, 0, SLURM_STEP_NODELIST="gpu001", SLURM_STEP_ID="4294967290"),
        "SLURM_NTASKS": "8",
    },
    "a notebook with one TPU host": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "an indexed job of Kubernetes": {"JOB_COMPLETION_INDEX": "3"},
    "mpirun -n 1": {"PMI_RANK": "0", "PMI_SIZE": "1"},
    "--num-processes 1": {**task(1, 2, "1(x2)", 0, 1), "SSLJAX_NUM_PROCESSES": "1"},
}


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_one_process(name):
    assert detect(ONE_PROCESS[name]) is None


FLAGS = {"SSLJAX_COORDINATOR": "127.0.0.1:4000", "SSLJAX_PROCESS_ID": "1", "SSLJAX_NUM_PROCESSES": "4"}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",  # of the documentation of JAX
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
SLICES = {
    "TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a,a-2.a,a-3.a",
    "TPU_WORKER_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8476",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
JOBSET = {
    "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run",
    "JAX_PROCESS_COUNT": "8",
    "PROCESSES_IN_JOB": "4",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "2",
}
OTHERS = {
    "flags": (FLAGS, Job("127.0.0.1:4000", 1, 4, "the flags")),
    "flags win": ({**task(0, 2, "1(x2)", 0, 0), **FLAGS}, Job("127.0.0.1:4000", 1, 4, "the flags")),
    "another coordinator": (
        {**task(1, 2, "1(x2)", 0, 1), "SSLJAX_COORDINATOR": "[fe80::1]:9"},
        Job("[fe80::1]:9", 1, 2, "SLURM"),
    ),
    # `mpirun` in an allocation of SLURM starts one daemon per node with srun: its task ids are not ours.
    "Open MPI": ({**task(1, 2, "1(x2)", 0, 1), **OPEN_MPI}, Job("10.96.0.1:62624", 3, 4, "Open MPI", (2, 3))),
    "slices of TPUs": (SLICES, Job("run-slice-0-0.run:8482", 6, 8, "TPU slices")),
    "one slice": (
        {k: v for k, v in SLICES.items() if k.startswith("TPU")},
        Job("a-0.a:8482", 2, 4, "TPU slices"),
    ),
    "JobSet": (JOBSET, Job("run-workers-0-0.run:1234", 6, 8, "JobSet")),
    "MPICH": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1", "SSLJAX_COORDINATOR": "node1:9"},
        Job("node1:9", 1, 2, "MPI"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_environments(name):
    environ, job = OTHERS[name]
    assert detect(environ) == job


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SSLJAX_PROCESS_ID": "4"}, "the process id (of the flags): got 4, must be below the number of processes, 4"),
        ({"SSLJAX_PROCESS_ID": "one"}, "--process-id (or $SSLJAX_PROCESS_ID): got 'one', must be a whole number"),
        ({"SSLJAX_PROCESS_ID": ""}, "--process-id: missing; --coordinator and --num-processes"),
        ({"SSLJAX_NUM_PROCESSES": ""}, "--num-processes: missing"),
        ({"SSLJAX_NUM_PROCESSES": "0"}, "at least 1"),
        ({"SSLJAX_COORDINATOR": ""}, "--coordinator: missing"),
        ({"SSLJAX_COORDINATOR": "node1"}, "--coordinator: got 'node1', must be HOST:PORT"),
        ({"SSLJAX_COORDINATOR": "node1:70000"}, "must be HOST:PORT"),
        ({"SSLJAX_PROCESS_ID": "", "SSLJAX_NUM_PROCESSES": ""}, "--process-id and --num-processes: missing"),
    ],
)
def test_wrong_flags_are_one_line(changes, words):
    with pytest.raises(UserError) as error:
        detect({**FLAGS, **changes})
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (task(2, 2, "1(x2)", 0, 1), "the process id (of SLURM): got 2"),
        (task(0, 3, "3", 0, 0, **ALL_GPUS), "3 processes on a machine see 4 of 4 GPUs each"),
        (task(0, 4, "4", 0, 0, CUDA_VISIBLE_DEVICES="0,1"), "4 processes on a machine see 2 of 4 GPUs each"),
        (task(0, 2, "1(x2)", 0, 0, SLURM_STEP_NODELIST="[", **ALL_GPUS), "must be a list of hosts"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "give --coordinator HOST:PORT"),
        ({k: v for k, v in OPEN_MPI.items() if "uri" not in k}, "does not tell where process 0 is"),
    ],
)
def test_contradictions_of_schedulers_are_one_line(environ, words):
    with pytest.raises(UserError) as error:
        detect(environ)
    assert words in str(error.value)


def test_lists_of_slurm():
    hosts = {"gpu001": "gpu001", "gpu001,gpu7": "gpu001", "gpu[001-004,7]": "gpu001", "gpu[3,5-6],a": "gpu3"}
    hosts |= {"rack[1-2]-n[01-16].cluster": "rack1-n01.cluster", "login-1": "login-1"}
    assert {text: first_host(text) for text in hosts} == hosts
    assert tasks_per_node("4(x2),1,2(x3)") == [4, 4, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (1,)),  # nothing is known of GPUs: one each, if there are any
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"CUDA_VISIBLE_DEVICES": "5"}, None),  # a wrapper gave each process one GPU
        ({"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2", "JAX_PLATFORMS": "cpu"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "0"}, None),  # JAX reads this variable
    ],
)
def test_shares_of_gpus(environ, expected):
    assert local_gpus(environ, rank=1, processes=2) == expected


SUM = """
import sys, time
from ssljax import parallel
job = parallel.start(sys.argv[1], int(sys.argv[2]), 2)
import jax, numpy as np
mesh = jax.make_mesh((jax.device_count(),), ("data",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
own = np.full(jax.local_device_count(), job.process_id + 1.0)
print(float(jax.jit(lambda x: x.sum())(jax.make_array_from_process_local_data(sharding, own))), flush=True)
if job.process_id == 1:
    raise ValueError("a mistake")
time.sleep(100)
"""


def test_two_processes_add_and_one_that_fails_leaves_at_once():
    """JAX's own exit would wait for process 0, for 300 seconds."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    command = [sys.executable, "-c", SUM, address]
    pipes = {"env": environ, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen([*command, str(i)], **pipes) for i in range(2))
    try:
        out, err = second.communicate(timeout=60)
        assert (out.splitlines()[-1], second.returncode) == ("6.0", 1), err  # 1 + 1 + 2 + 2
        assert "ValueError: a mistake" in err
        assert first.poll() is None
        assert "6.0\n" in iter(first.stdout.readline, "")  # Gloo writes lines before
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("options", [["--process-id", "0"], ["--num-processes", "2", "--process-id", "2"]])
def test_the_command_refuses_half_a_job(options, monkeypatch, capsys):
    monkeypatch.setattr(cli.training, "compilation_cache", lambda: None)
    assert cli.main(["eval", "--workdir", "none", *options]) == 2
    assert capsys.readouterr().err.startswith("error: --coordinator")
