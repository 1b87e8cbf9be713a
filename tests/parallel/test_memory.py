"""The memory of the devices of this machine."""

import dataclasses

import jax
import pytest

from ssljax.parallel import memory
from ssljax.parallel.hardware import find


@dataclasses.dataclass
class Device:
    """A stand-in for an accelerator, with the attributes that are read."""

    stats: dict
    platform: str = "cuda"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    def memory_stats(self):
        return self.stats


def test_cpu_devices_share_three_quarters_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1600.0)
    assert memory.free_bytes(jax.devices()[0]) == pytest.approx(0.75 * 1600 / 8)


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMIT", limit)
    whole = memory.machine_bytes()
    assert whole > 2**28, "without a file, the memory of the machine"
    limit.write_text("max\n")
    assert memory.machine_bytes() == whole
    limit.write_text("123456\n")
    assert memory.machine_bytes() == 123456


def test_an_accelerator_has_what_its_allocator_has_left():
    assert memory.free_bytes(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert memory.free_bytes(Device({})) == find("NVIDIA H100 80GB HBM3").memory, (
        "of the table, without an allocator that tells"
    )
    assert memory.free_bytes(Device({}, device_kind="unknown")) == 8 * 2**30
