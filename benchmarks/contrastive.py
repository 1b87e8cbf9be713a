"""Memory, communication and time of the forms of contrastive losses; writes the tables of docs/contrastive.md.

    python benchmarks/contrastive.py cpu:8      # memory and communication on 8 devices, by compilation alone
    python benchmarks/contrastive.py h100:8     # needs the extra plan-gpu, and no GPU
    python benchmarks/contrastive.py v5e:2x4    # needs the extra plan-tpu, and no TPU
    python benchmarks/contrastive.py time       # dense against chunked at a batch of 8,192, on one CPU: the loss
    python benchmarks/contrastive.py step       # and a whole training step

Vectors have 512 dimensions, in float32. A program is the loss of given vectors, forward and backward. Memory is the
size of its temporaries on one device, without inputs and gradients.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from pages import fill, markdown

from ssljax import losses, parallel
from ssljax.config import build
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.clip import CLIP
from ssljax.parallel.topology import topology
from ssljax.runs.assembly import assemble

PAGE = pathlib.Path(__file__).parent.parent / "docs/contrastive.md"
WIDTH = 512
BATCHES = (8_192, 65_536, 262_144)
FORMS = ("dense", "chunked", "ring")
# (loss, learned numbers, vectors of an example that others must see, whose gradients must come back)
LOSSES: dict[str, tuple[Callable[..., Any], tuple[str, ...], int, int]] = {
    "nt_xent": (losses.nt_xent, ("temperature",), 2, 0),
    "clip": (losses.clip, ("logit_scale",), 1, 1),
    "siglip": (losses.siglip, ("logit_scale", "logit_bias"), 1, 1),
}
COLLECTIVES = ("ppermute", "all_gather", "reduce_scatter", "all_to_all")


def traced(name: str, form: str, mesh: Mesh, batch: int) -> Any:
    """The loss and its gradients for a global batch on a mesh, ready for `lower` and `jaxpr`."""
    loss, learned, _, _ = LOSSES[name]

    def value(first: jax.Array, second: jax.Array, learned: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        ctx = Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(batch, dtype=jnp.int32))
        matched = CLIP(form=form).match(loss, first, second, learned, ctx)
        _, total, weight = matched.term
        return total / weight, matched.accuracy

    with parallel.mesh_context(mesh):
        z = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=parallel.batch_sharding(mesh))
        numbers = {key: jax.ShapeDtypeStruct((), jnp.float32, sharding=parallel.replicated(mesh)) for key in learned}
        return jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True)).trace(z, z, numbers)


def sent(jaxpr: Any) -> float:
    """Bytes that a device sends in the collective operations of a traced program, with the trips of its loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in COLLECTIVES:
            # What a device gathers or scatters, it sends in all parts but its own.
            whole = max(equation.invars[0].aval, equation.outvars[0].aval, key=lambda aval: aval.size)
            own = min(equation.invars[0].aval, equation.outvars[0].aval, key=lambda aval: aval.size)
            share = equation.primitive.name in ("all_gather", "reduce_scatter")
            total += (whole.size - own.size if share else whole.size) * whole.dtype.itemsize
        trips = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = (getattr(value, "jaxpr", value) for value in jax.tree.leaves(equation.params))
        total += trips * sum(sent(found) for found in inner if hasattr(found, "eqns"))
    return total


def least_sent(name: str, devices: int, batch: int) -> int:
    """Bytes that a device sends at least, if each computes the rows of its examples."""
    _, _, seen, returned = LOSSES[name]
    return (seen + returned) * (devices - 1) * (batch // devices) * WIDTH * 4


def temporaries(program: Any, mesh: Mesh) -> int | None:
    """Bytes of temporaries of one device; None: the compiler finds that they do not fit."""
    try:
        with parallel.mesh_context(mesh):
            return program.lower().compile().memory_analysis().temp_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def rows(mesh: Mesh) -> Iterator[tuple[str, ...]]:
    """Rows of the table of a mesh."""
    for name in LOSSES:
        for batch in BATCHES:
            programs = [traced(name, form, mesh, batch) for form in FORMS]
            memory = [temporaries(program, mesh) for program in programs]
            moved = [least_sent(name, mesh.size, batch), *(sent(program.jaxpr.jaxpr) for program in programs[1:])]
            cells = ["does not fit" if size is None else f"{size / 1e9:.3f}" for size in [*memory, *moved]]
            yield f"`{name}`", f"{batch:,}", *cells


def in_turns(calls: Sequence[Callable[[], Any]], rounds: int = 15) -> tuple[float, float, float]:
    """Medians over rounds: seconds of the first call, of the second call, and their ratio within a round."""
    taken: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for call, times in zip(calls, taken):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
    first, second = (times[1:] for times in taken)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in zip(first, second))


def seconds(name: str, batch: int) -> tuple[float, float, float]:
    """Times of the dense and of the chunked loss on one device, and their ratio."""
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    runs = [traced(name, form, mesh, batch).lower().compile() for form in ("dense", "chunked")]
    first, second = (jax.random.normal(key, (batch, WIDTH)) for key in jax.random.split(jax.random.key(0)))
    numbers = {"temperature": 0.1, "logit_scale": 10.0, "logit_bias": -10.0}
    learned = {key: jnp.float32(numbers[key]) for key in LOSSES[name][1]}
    return in_turns([lambda run=run: run(first, second, learned) for run in runs])


MODEL = {
    "embed_dim": WIDTH,
    "image": {"preset": None, "width": 64, "depth": 2, "heads": 4, "patch_size": 8},
    "text": {"preset": None, "width": 64, "depth": 2, "heads": 4},
}
STEP = {
    "data": {"source": "declared:rows=100k,image=16x16x3,text=1024", "mode": "documents", "seq_len": 16},
    "optimizer": {"name": "adamw"},
    "steps": 100,
    "batch_size": BATCHES[0],
}


def step_seconds(objective: str) -> tuple[float, float, float]:
    """Times of a training step with the dense and with the chunked loss on one device, and their ratio."""
    return in_turns([training(objective, form) for form in ("dense", "chunked")], rounds=9)


def training(objective: str, form: str) -> Callable[[], Any]:
    """Returns a function that does the next training step, on rows of zeros."""
    config = {**STEP, "model": {**MODEL, "name": objective}, "objective": {"name": objective, "form": form}}
    assembly = assemble(build(config), jax.devices()[:1])
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        batch = program.put(assembly.spec.zeros(BATCHES[0]) | {"id": np.arange(BATCHES[0])})
        state = program.jitted_init()(0)

    def step() -> Any:
        nonlocal state
        with parallel.mesh_context(program.mesh):
            state, metrics = program.jitted_step()(state, batch)
        return state, metrics

    return step


def timed(section: str) -> Iterator[tuple[str, ...]]:
    """Rows of a table of times."""
    for name in LOSSES if section == "time" else ("clip", "siglip"):
        found = seconds(name, BATCHES[0]) if section == "time" else step_seconds(name)
        yield f"`{name}`", *(f"{number:.2f}" for number in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", help="`time`, `step`, or the devices: `cpu:8`, `h100:8`, `v5e:2x4`")
    section = parser.parse_args().section
    if section in ("time", "step"):
        jax.config.update("jax_platforms", "cpu")
        head: tuple[str, ...] = ("loss", "dense, s", "chunked, s", "chunked / dense")
        found = timed(section)
    else:
        mesh = parallel.make_mesh(parallel.MeshConfig(), topology(section).devices)
        head = ("loss", "batch", *(f"{form}, GB" for form in FORMS))
        head += ("least sent, GB", "sent by chunked, GB", "sent by ring, GB")
        found = rows(mesh)
    body = []
    for cells in found:
        body.append(cells)
        print(" | ".join(cells), flush=True)
    fill(PAGE, f"benchmarks/contrastive.py {section}", markdown(head, body))


if __name__ == "__main__":
    main()
