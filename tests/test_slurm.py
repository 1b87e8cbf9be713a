"""Jobs on a real SLURM: its daemons run on this machine, two nodes with four GPUs (device files without GPUs) each.

Debian: `apt-get install slurmctld slurmd slurm-client munge`; then, as root, `pytest -m full tests/test_slurm.py`, a
minute.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from ssljax.parallel.processes import detect

pytestmark = pytest.mark.full
ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol")

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=gpu001 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:4
NodeName=gpu002 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a user of the cluster."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.getuid():
        pytest.skip(f"{', '.join(missing) or 'root'}: missing, to run the daemons of SLURM")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=free_ports(3)))
    for i in range(4):
        os.mknod(folder / f"nvidia{i}", 0o20600, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-3] Flags=nvidia_gpu_env\n")
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CUDA", "SSLJAX", "JAX_PLATFORMS"))}
    environ = {**clean, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}:{clean['PATH']}:/usr/sbin"}
    options = {"key-file": "key", "socket": "munge.socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--force", "--foreground", *(f"--{name}={folder / file}" for name, file in options.items())]
    daemons = []
    try:
        for command in (
            munged,
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "gpu001"],
            ["slurmd", "-D", "-N", "gpu002"],
        ):
            daemons.append(subprocess.Popen(command, env=environ, stdout=-3, stderr=-3))
            time.sleep(1)
        subprocess.run(["srun", "-N2", "true"], env=environ, check=True, timeout=60)
        yield environ, folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.mark.parametrize(
    "options",
    [
        "-N2 --ntasks-per-node=1 --gpus-per-node=4",
        "-N2 --ntasks-per-node=4 --gpus-per-node=4",
        "-N2 --ntasks-per-node=2 --gpus-per-node=4",
        "-N2 --ntasks-per-node=4 --gpus-per-task=1",
        "-N2 --ntasks-per-node=2 --gpus-per-task=2",
        "-N2 --ntasks-per-node=4 --gpus-per-node=4 --gpu-bind=single:1",
        "-N1 -n2 --gpus-per-node=4",
    ],
)
def test_the_tasks_of_a_node_use_each_gpu_once(options, cluster, tmp_path):
    environ, _ = cluster
    dump = f"import json, os; json.dump(dict(os.environ), open('{tmp_path}/' + os.environ['SLURM_PROCID'], 'w'))"
    subprocess.run(["srun", *options.split(), sys.executable, "-c", dump], env=environ, check=True, timeout=60)
    tasks = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    jobs = [detect(task) for task in tasks]
    assert sorted(job.process_id for job in jobs) == list(range(len(tasks)))
    assert {(job.num_processes, job.coordinator) for job in jobs} == {(len(tasks), jobs[0].coordinator)}
    assert jobs[0].coordinator.startswith("gpu001:")
    used = {}
    for task, job in zip(tasks, jobs):
        seen = task["CUDA_VISIBLE_DEVICES"].split(",")
        own = seen if job.local_devices is None else [seen[i] for i in job.local_devices]
        used.setdefault(task["SLURMD_NODENAME"], []).extend(own)
    assert {node: sorted(gpus) for node, gpus in used.items()} == {
        node: ["0", "1", "2", "3"] for node in {task["SLURMD_NODENAME"] for task in tasks}
    }


def test_a_batch_script_without_srun_is_one_process(cluster, tmp_path):
    environ, _ = cluster
    script = tmp_path / "script"
    dump = f"import json, os; json.dump(dict(os.environ), open('{tmp_path}/environment', 'w'))"
    script.write_text(f'#!/bin/bash\n{sys.executable} -c "{dump}"\n')
    command = ["sbatch", "--wait", "-N2", "--ntasks-per-node=4", "--output=/dev/null", str(script)]
    subprocess.run(command, env=environ, check=True, timeout=60)
    found = json.loads((tmp_path / "environment").read_text())
    assert found["SLURM_NTASKS"] == "8" and detect(found) is None


def submit(cluster, command, tmp_path, **variables):
    """Submits a job of two tasks, whose `ssljax` is a bash command; returns its number."""
    environ, folder = cluster
    program = folder / "ssljax"
    program.write_text(f"#!/bin/bash\n{command}\n")
    program.chmod(0o755)
    options = ["--parsable", "-N2", f"--output={tmp_path}/output"]
    words = ["sbatch", *options, str(ROOT / "launch/slurm.sbatch"), "train"]
    done = subprocess.run(words, env={**environ, **variables}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def state(cluster, number):
    """State and number of restarts of a job."""
    show = ["scontrol", "show", "job", number, "--oneliner"]
    text = subprocess.run(show, env=cluster[0], capture_output=True, text=True, check=True).stdout
    facts = dict(word.partition("=")[::2] for word in text.split())
    return facts["JobState"], int(facts["Restarts"])


def test_a_stop_puts_the_job_back_into_the_queue(cluster, tmp_path):
    stops = f"trap 'exit 75' TERM; touch {tmp_path}/$SLURM_PROCID; while :; do sleep 0.2; done"
    number = submit(cluster, stops, tmp_path)
    wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    subprocess.run(["scancel", "--signal=TERM", number], env=cluster[0], check=True)
    wait_for(lambda: state(cluster, number) == ("PENDING", 1))
    subprocess.run(["scancel", number], env=cluster[0], check=True)
    assert "task 0: Exited with exit code 75" in (tmp_path / "output").read_text().replace("tasks 0-1", "task 0")


def test_a_killed_task_ends_the_others_and_is_told(cluster, tmp_path):
    number = submit(cluster, "[ $SLURM_PROCID = 1 ] && kill -9 $$; sleep 1; kill -ABRT $$", tmp_path, RESTARTS="0")
    wait_for(lambda: state(cluster, number)[0] == "FAILED")
    output = (tmp_path / "output").read_text()
    assert "task 1: Killed" in output and output.endswith("a task failed (exit code 137), see above\n")
    assert state(cluster, number)[1] == 0


def test_a_mistake_of_the_user_is_not_repeated(cluster, tmp_path):
    number = submit(cluster, "exit 2", tmp_path)
    wait_for(lambda: state(cluster, number)[0] == "FAILED")
    assert state(cluster, number)[1] == 0


SUM = """
from ssljax import parallel
job = parallel.start()
import jax, numpy as np
mesh = jax.make_mesh((jax.device_count(),), ("data",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
own = np.full(jax.local_device_count(), job.process_id + 1.0)
total = jax.jit(lambda x: x.sum())(jax.make_array_from_process_local_data(sharding, own))
open(f"{FOLDER}/{job.process_id}", "w").write(str(float(total)))
"""


def test_processes_on_two_nodes_add(cluster, tmp_path):
    """The names of these nodes are no hosts, so the address is given; the numbers come from SLURM."""
    (tmp_path / "program.py").write_text(f"FOLDER = '{tmp_path}'\n{SUM}")
    settings = {"SSLJAX_COORDINATOR": f"127.0.0.1:{free_ports(1)[0]}", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    settings["JAX_NUM_CPU_DEVICES"] = "1"
    command = ["srun", "-N2", "--ntasks-per-node=2", sys.executable, str(tmp_path / "program.py")]
    subprocess.run(command, env={**cluster[0], **settings}, check=True, timeout=240)
    assert [(tmp_path / str(i)).read_text() for i in range(4)] == ["10.0"] * 4
