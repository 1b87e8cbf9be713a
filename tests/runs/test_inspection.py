"""`ssljax inspect`: its numbers are those of the state that the run would have."""

import jax
import pytest
from tiny_runs import LM

from ssljax import cli, parallel, runs
from ssljax.config import build
from ssljax.runs.inspection import inspect

CONFIG = {
    "model": {"name": "gpt", "preset": None, "width": 32, "depth": 2, "heads": 2},
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin:python-docs", "seq_len": 16},
    "optimizer": {"name": "adamw"},
    "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    "ema": 0.9,
    "steps": "2 epochs",
    "batch_size": 8,
}


def test_memory_and_parameters_are_those_of_the_state():
    config = build(CONFIG)
    found, program = inspect(config), runs.assemble(config).program
    with parallel.mesh_context(program.mesh):
        state = program.jitted_init()(0)
    memory = {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in found.memory.rows}
    parts = {"parameters": state.params, "optimiser": state.opt_state, "averaged parameters": state.ema}
    for name, part in parts.items():
        leaves = jax.tree.leaves(part)
        device = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert memory[name] == [round(sum(leaf.nbytes for leaf in leaves) / 1e6, 1), round(device / 1e6, 1)]
    numbers = [int(row[-1].replace(",", "")) for row in found.parameters.rows]
    assert numbers == [leaf.size for leaf in jax.tree.leaves(state.params)]
    assert all(row[2] for row in found.parameters.rows), "every parameter has a role"
    values = dict(found.run.rows)
    assert f"{sum(numbers):,} parameters" in values["model"] and ": 2.00 epochs of" in values["steps"]
    assert "data 2, fsdp 2, tensor 2" in values["devices"]


def test_the_bytes_of_a_token(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 99 + "\n")
    source = {"source": f"text:{tmp_path}/a.txt", "mode": "windows", "seq_len": 10}
    found = inspect(build({**LM, "data": source}))
    assert dict(found.run.rows)["tokens"].endswith("vocabulary 260, 0.99 bytes a token")  # and one end token


@pytest.mark.parametrize("more", [[], ["--parameters"]])
def test_the_command_prints_80_columns(more, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["inspect", "--config", "configs/quickstart.py", "--config.batch_size=64", *more]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("of 64 examples" in line for line in lines)
    assert any("encoder/" in line for line in lines) == bool(more)
