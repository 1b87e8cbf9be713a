"""Cost of the loop around the step: time outside the device, start-up, checkpoints, memory while restoring.

    python benchmarks/loop.py                        # all parts
    python benchmarks/loop.py outside stall          # some of them
    python benchmarks/loop.py --small                # in a minute, to see that it works

outside: share of the time of a step of about 1 ms that is not spent on the device: the time of a step in a whole run
    (data, log points, callbacks), against that of the compiled step alone, called on one batch that is on the device.
first: seconds from the start of the command to the end of the first step, with an empty cache of compiled programs
    (cold) and with the cache of the run before (warm).
stall: time that saving a checkpoint in the background takes from training: the time of the steps from one checkpoint to
    the next, beyond as many steps of median duration.
restore: growth of the memory of the process while a checkpoint is restored, as a multiple of its bytes. On a CPU the
    restored arrays are part of it.

Prints a table, and writes it to docs/howto/profiling.md if all parts were measured.
"""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
from pages import fill, markdown

from ssljax import config as configs
from ssljax import parallel, run
from ssljax.base import schema
from ssljax.objectives.base import Loss, Variables, stream
from ssljax.objectives.images import ImageObjective
from ssljax.runs.assembly import assemble
from ssljax.train.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("outside", "first", "stall", "restore")


@dataclasses.dataclass(frozen=True)
class Work(ImageObjective):
    """Matrix products of a given number, so that a step takes a given time; it learns nothing of use."""

    products: int = schema.setting(1, gt=0, doc="number of matrix products")
    width: int = schema.setting(256, gt=0, doc="rows and columns of the matrices")

    def init(self, key: jax.Array, batch: Any) -> Variables:
        kernel = 0.01 * jax.random.normal(key, (self.products, self.width, self.width))
        return Variables({"encoder": {"kernel": kernel}}, {})

    def views(self, keys: jax.Array, batch: Any, step: jax.Array) -> dict[str, jax.Array]:
        pixels = batch["image"].reshape(len(batch["image"]), -1)
        return {"x": jnp.resize(pixels, (len(pixels), self.width))}

    def encode(self, params: Any, extra: Any, inputs: Any, ctx: Any) -> jax.Array:
        return jax.lax.scan(lambda x, kernel: (x + x @ kernel, None), inputs["x"], params["encoder"]["kernel"])[0]

    def loss(self, params: Any, extra: Any, outputs: jax.Array, inputs: Any, ctx: Any) -> Loss:
        return Loss({"square": (1.0, jnp.sum(outputs**2), jnp.float32(outputs.size))})

    def features(self, params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        return {"pooled": self.views(None, batch, None)["x"]}

    def flops(self, spec: Any) -> float:
        return 2.0 * self.products * self.width**2


def settings(products: int, width: int, steps: int, **more: Any) -> dict[str, Any]:
    """The config of a run of `Work` on digits."""
    return {
        "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "loop:Work", "products": products, "width": width},
        "data": {"source": "builtin:digits"},
        "optimizer": {"name": "sgd", "learning_rate": 1e-6},
        "steps": steps,
        "batch_size": 64,
        "log": {"every_steps": 50, "progress": False, "trackers": [], "pictures": False},
        **more,
    }


def alone(config: dict[str, Any], calls: int) -> float:
    """Seconds of a compiled step alone, median of five rounds of `calls` calls."""
    assembly = assemble(configs.build(config))
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        batch, step = program.put(assembly.dataset.batch(0)), program.jitted_step()
        state, _ = step(program.jitted_init()(0), batch)
        rounds = []
        for _ in range(5):
            jax.block_until_ready(state)
            began = time.perf_counter()
            for _ in range(calls):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            rounds.append((time.perf_counter() - began) / calls)
    return statistics.median(rounds)


class Clock:
    """A callback of a run that notes the time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, step: int, state: Any) -> None:
        self.times.append(time.perf_counter())


def outside(folder: pathlib.Path, small: bool) -> list[list[str]]:
    """Share of time outside the device for a step of about 1 ms."""
    products, steps = 1, 300 if small else 3000
    while (seconds := alone(settings(products, 256, steps), 20)) < 1e-3 and products < 4096:
        products = max(products + 1, int(products * min(1.2e-3 / seconds, 4)))
    config, clock = settings(products, 256, steps), Clock()
    seconds = alone(config, steps // 5)
    run.train(config, folder / "outside", callbacks=[(1, clock)])
    whole = (clock.times[-1] - clock.times[steps // 10]) / (len(clock.times) - 1 - steps // 10)
    return [
        ["compiled step alone", f"{1e3 * seconds:.2f} ms"],
        ["step in a run", f"{1e3 * whole:.2f} ms"],
        ["share outside the device", f"{max(1 - seconds / whole, 0):.1%}"],
    ]


def first(folder: pathlib.Path, small: bool) -> list[list[str]]:
    """Seconds to the end of the first step of the quickstart, cold and warm."""
    rows = []
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    for name in ("cold", "warm"):
        workdir = folder / name
        options = ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(workdir)]
        options += ["--config.steps=2", "--config.log.every_steps=1", "--config.evals={}", "--config.log.trackers=()"]
        began = time.perf_counter()
        command = [sys.executable, "-m", "ssljax.cli", "train", *options]
        output = folder / f"{name}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            while not (workdir / "metrics.jsonl").exists():
                if process.poll() is not None:
                    raise RuntimeError(output.read_text())
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            process.wait()
        start = json.loads((workdir / "starts.jsonl").read_text().splitlines()[-1])["seconds"]["start"]
        rows.append([f"first step, {name}", f"{seconds:.1f} s, of which {start:.1f} s in `train` before it"])
    return rows


def large(small: bool, steps: int) -> dict[str, Any]:
    """The config of a run with a state of 134 MB (small: 8 MB), which is saved every third of the run."""
    more = {"checkpoint": {"every_steps": steps // 3, "keep": 1}}
    return settings(16 if small else 64, 256 if small else 512, steps, **more)


def stall(folder: pathlib.Path, small: bool) -> list[list[str]]:
    """Time that a checkpoint takes from training."""
    steps = 60 if small else 600
    config, clock, every = large(small, steps), Clock(), steps // 3
    run.train(config, folder / "stall", callbacks=[(1, clock)])
    gaps = [later - earlier for earlier, later in zip(clock.times, clock.times[1:])]
    median = statistics.median(gaps)
    # The gap after step k, the number of the first one being 1, has the saving of step k.
    saved = [sum(gap - median for gap in gaps[k - 1 : k - 1 + every]) for k in (every, 2 * every)]
    before = [gaps[k - 1] - median for k in (every, 2 * every)]
    whole, blocked = (f"{1e3 * statistics.mean(seconds):.0f} ms" for seconds in (saved, before))
    megabytes = bytes_of(config) / 1e6
    return [[f"stall of a checkpoint of {megabytes:.0f} MB", f"{whole}, of which {blocked} before the next step"]]


def bytes_of(config: dict[str, Any]) -> int:
    """Bytes of the state of a run."""
    shapes = assemble(configs.build(config)).program.shapes
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def restore(folder: pathlib.Path, small: bool) -> list[list[str]]:
    """Growth of the memory of a new process that restores a checkpoint."""
    config = large(small, 3)
    run.train(config, folder / "restore")
    code = f"import loop; loop.restored({str(folder / 'restore')!r}, {small})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    growth, size = map(int, done.stdout.splitlines()[-1].split())
    cell = f"{growth / 1e6:.0f} MB for {size / 1e6:.0f} MB: {growth / size:.1f} times"
    return [["memory while restoring", cell]]


def restored(workdir: str, small: bool) -> None:
    """Restores the checkpoint of a run; prints the growth of the memory and the bytes of the state."""
    config = configs.build(large(small, 3))
    program = assemble(config).program
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", config.checkpoint, config.identity())
    largest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], own_memory())

    with parallel.mesh_context(program.mesh):
        jax.block_until_ready(jax.jit(stream, static_argnums=2)(jnp.uint32(0), 0, "init"))  # starts the backend
        before, watcher = own_memory(), threading.Thread(target=watch, daemon=True)
        watcher.start()
        found = checkpoints.restore(program.target())
        jax.block_until_ready(found)
        done.set()
        watcher.join()
    assert found is not None
    checkpoints.close()
    print(largest[0] - before, sum(leaf.nbytes for leaf in jax.tree.leaves(found[0])))


def own_memory() -> int:
    """Bytes of memory that belong to this process alone."""
    fields = dict(line.split(":") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def main() -> None:
    """Runs the parts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="short runs and small states")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    rows = []
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            rows += globals()[part](pathlib.Path(folder), options.small)
    table = markdown(("measured", f"on {jax.device_count()} x {jax.devices()[0].device_kind}"), rows)
    print(table)
    if not options.small and not options.parts:
        fill(ROOT / "docs/howto/profiling.md", "benchmarks/loop.py", table)


if __name__ == "__main__":
    main()
