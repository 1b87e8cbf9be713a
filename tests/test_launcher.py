"""The supervisor of local processes: one line for the first failure, a bounded end, nothing left behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ssljax import launcher
from ssljax.base.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
LOCAL = ["bash", str(ROOT / "launch/local.sh")]
ENVIRON = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def launch(*words, **options):
    return subprocess.Popen([*LOCAL, *words], env=ENVIRON, stdout=-1, stderr=-1, text=True, **options)


def ended(*words):
    """Exit code, standard output and standard error of a launch."""
    process = launch(*words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def bash(script):
    return ["bash", "-c", script]


def alive(process_id):
    """True if a process exists and is no zombie."""
    try:
        return pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(condition, seconds=10):
    """Waits until a condition holds; returns what it returned last."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def numbers(folder, count):
    """The numbers that `count` files of a folder hold, when all are written."""
    return soon(lambda: len(f := [int(x) for p in folder.iterdir() if (x := p.read_text().strip())]) == count and f)


def test_the_leader_prints_and_the_others_write_files(tmp_path):
    script = "echo out $SSLJAX_PROCESS_ID of $SSLJAX_NUM_PROCESSES at $SSLJAX_COORDINATOR; echo err >&2"
    code, out, err = ended("-n", "3", "--port", "4444", "--logs", str(tmp_path), "--", *bash(script))
    assert (code, out, err) == (0, "out 0 of 3 at 127.0.0.1:4444\n", "err\n")
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {f"process-{i}.txt": f"out {i} of 3 at 127.0.0.1:4444\nerr\n" for i in (1, 2)}


def test_a_failure_is_one_line_and_ends_the_others(tmp_path):
    script = '[ $SSLJAX_PROCESS_ID = 1 ] || exec sleep 60; echo "ValueError: a mistake"; echo; exit 3'
    start = time.monotonic()
    code, _, err = ended("-n", "3", "--grace", "0.5", "--logs", str(tmp_path), "--", *bash(script))
    first, second = err.splitlines()
    log = tmp_path / "process-1.txt"
    assert first == (
        f"launch: process 1 of 3 ended with exit code 3; the others have 0.5 s to leave; {log}: ValueError: a mistake"
    )
    assert second == "launch: after 0.5 s, ending what has not left: 0, 2"
    assert code == 3 and time.monotonic() - start < 20


def test_kill_9_of_one_is_told_and_the_others_may_leave(tmp_path):
    """A survivor that aborts, as JAX lets it, is a consequence: the first failure decides."""
    script = (
        f"echo $$ > {tmp_path}/$SSLJAX_PROCESS_ID; [ $SSLJAX_PROCESS_ID = 1 ] && exec sleep 60; sleep 1; kill -ABRT $$"
    )
    process = launch("-n", "2", "--", *bash(script))
    assert len(numbers(tmp_path, 2)) == 2
    os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    (line,) = err.splitlines()
    told = "launch: process 1 of 2 was killed by SIGKILL; the others have 60 s to leave; its output is in "
    assert line.startswith(told)
    assert process.returncode == 137


@pytest.mark.parametrize(
    ("codes", "expected"), [((75, 75), 75), ((0, 75), 75), ((75, 2), 2), ((0, 0), 0), ((0, 137, 134), 137)]
)
def test_the_exit_code_is_75_if_all_saved_and_else_that_of_the_first_failure(codes, expected):
    assert launcher.exit_code(codes) == expected


STOPPING = 'trap "echo got TERM; exit 75" TERM; echo $$ > {}/$SSLJAX_PROCESS_ID; while :; do sleep 0.1; done'
STUBBORN = 'trap "echo got TERM" TERM INT; echo $$ > {}/$SSLJAX_PROCESS_ID; while :; do sleep 0.1; done'


def test_a_signal_reaches_all_processes_once(tmp_path):
    process = launch("-n", "2", "--", *bash(STOPPING.format(tmp_path)))
    assert len(numbers(tmp_path, 2)) == 2
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (75, "got TERM\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_at_once(number, tmp_path):
    process = launch("-n", "2", "--", *bash(STUBBORN.format(tmp_path)))
    started = numbers(tmp_path, 2)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert not any(map(alive, started))


def test_children_of_children_die_with_their_parent(tmp_path):
    """Worker processes would keep pipes and memory otherwise."""
    script = f"sleep 60 & echo $! > {tmp_path}/$SSLJAX_PROCESS_ID; [ $SSLJAX_PROCESS_ID = 1 ] && exit 1; wait"
    process = launch("-n", "2", "--grace", "1", "--", *bash(script))
    process.communicate(timeout=30)
    children = numbers(tmp_path, 2)
    assert soon(lambda: not any(map(alive, children)))


def test_nothing_is_left_if_the_supervisor_is_killed(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/$SSLJAX_PROCESS_ID; echo $$ > {tmp_path}/own-$SSLJAX_PROCESS_ID; wait"
    process = launch("-n", "2", "--", *bash(script))
    started = numbers(tmp_path, 4)
    assert all(map(alive, started))
    process.kill()
    process.communicate(timeout=10)  # the pipes are closed, too
    assert soon(lambda: not any(map(alive, started)))


def test_restarts(tmp_path):
    """All start again, at another port, until they succeed; mistakes of the user are not repeated."""
    script = f"echo $SSLJAX_COORDINATOR >> {tmp_path}/0; [ $(wc -l < {tmp_path}/0) = 3 ]"
    code, _, err = ended("-n", "1", "--restarts", "5", "--", *bash(script))
    assert code == 0 and len(set((tmp_path / "0").read_text().split())) == 3
    assert [line for line in err.splitlines() if "again" in line] == [
        "launch: starting again, 1 of 5",
        "launch: starting again, 2 of 5",
    ]
    assert ended("-n", "1", "--restarts", "5", "--", *bash("exit 2"))[2].count("launch:") == 1


def test_dry_run():
    code, out, err = ended(
        "-n", "2", "--devices-per-process", "4", "--port", "4444", "--dry-run", "train", "--config", "c.py"
    )
    assert (code, err) == (0, "")
    for i, line in enumerate(out.splitlines()):
        assert line.startswith(f"SSLJAX_COORDINATOR=127.0.0.1:4444 SSLJAX_PROCESS_ID={i} SSLJAX_NUM_PROCESSES=2 ")
        assert " JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 " in line
        assert line.endswith(f"{sys.executable} -m ssljax.cli train --config c.py")
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: the following arguments are required"),
        (["-n", "0", "train"], "error: argument -n/--processes: got '0', must be a whole number, at least 1"),
        (["-n", "2"], "error: COMMAND: missing, such as train --config"),
        (["-n", "1", "no-such-program"], "error: no-such-program: no such program"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, capsys):
    assert launcher.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "2,3"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_PLATFORMS": "cpu"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_processes_share_the_gpus(environ, expected):
    two = launcher.Launch(("x",), 2)
    assert launcher.environment(two, 1, 1, environ).get("JAX_LOCAL_DEVICE_IDS") == expected
    with pytest.raises(UserError, match="3 processes cannot share 4 GPUs evenly"):
        launcher.environment(launcher.Launch(("x",), 3), 0, 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})


def test_the_last_error_of_a_log():
    assert launcher.last_error("Traceback\nValueError: x\n  and more\n\n") == "ValueError: x"
    assert launcher.last_error("one\ntwo\n") == launcher.last_error("") == ""
    aborted = "F1129 13:50:39 client.h:80] Terminating process because ...\n*** Check failure stack trace: ***\n @ 0x7f"
    assert launcher.last_error(aborted).startswith("F1129 13:50:39 client.h:80] Terminating process")


def test_the_supervisor_does_not_import_jax():
    code = "import sys, ssljax.launcher; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRON).returncode == 0


@pytest.mark.full
def test_two_processes_train_the_quickstart_as_one_process_with_two_devices(tmp_path):
    """On one mesh the losses of all 500 steps are equal: a sum of two terms does not depend on their order."""
    environ = {k: v for k, v in ENVIRON.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    words = ["train", "--config", "configs/quickstart.py", "--workdir"]
    command = [*LOCAL, "-n", "2", *words, str(tmp_path / "two")]
    subprocess.run(command, env=environ, cwd=ROOT, check=True)
    alone = {**environ, "JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run([sys.executable, "-m", "ssljax.cli", *words, str(tmp_path / "one")], env=alone, cwd=ROOT, check=True)
    for name, key in (("metrics.jsonl", "loss"), ("evals.jsonl", "metrics")):
        two, one = ((tmp_path / run / name).read_text().splitlines() for run in ("two", "one"))
        assert [json.loads(line)[key] for line in two] == [
            pytest.approx(json.loads(line)[key], rel=1e-4) for line in one
        ]
