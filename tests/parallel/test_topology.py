"""Names of topologies: those of the CPU here; of TPUs and GPUs where their compilers are installed."""

import importlib.util
import subprocess
import sys

import jax
import pytest
from absent_hardware import needs_gpu, needs_tpu

from ssljax.base.errors import UserError
from ssljax.parallel import MeshConfig, make_mesh, mesh, platform
from ssljax.parallel.mesh import mesh_context
from ssljax.parallel.topology import target_config, topology


def test_cpu_devices():
    found = topology("cpu:4")
    assert found.devices == jax.devices()[:4] and found.chip.name == "cpu" and not found.notes


def test_devices_that_are_here():
    assert topology("here").devices == jax.devices()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:2x2", "'v5x' is unknown; did you mean 'v5p'.*known: v4, v5e"),
        ("", "'' is unknown"),
        ("cpu", "must be cpu:8"),
        ("cpu:0", "must be cpu:8"),
        ("cpu:2x4", "must be cpu:8"),
        ("cpu:99", "started with 8 CPU devices"),
        ("v5e:16", "must be v5e:16x16"),
        ("v5e:axb", "must be v5e:16x16"),
        ("v4:2x2x2x2", "must be v4:4x4x8"),
        ("h100:1x2x3", r"must be h100:8 \(GPUs of one host\)"),
        ("h100:-8", "must be h100:8"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError, match=message):
        topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "plan-tpu"), ("h100:8", "plan-gpu")])
def test_a_missing_compiler_is_named(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'ssljax\[{extra}\]'"):
        topology(name)


def test_descriptions_of_gpus():
    text = target_config("h100")
    assert text.count("{") == text.count("}") and "core_count: 132" in text and "major: 9 minor: 0" in text


@needs_tpu
def test_slices_that_a_slow_network_joins():
    """Blocks of `data`, or of `fsdp`, are slices; the other axes stay within one."""
    found = topology("2*v5e:2x2")
    assert len(found.devices) == 8
    for sizes in ({"data": 2, "tensor": 4}, {"data": 1, "fsdp": 4, "tensor": 2}):
        devices = make_mesh(MeshConfig(**sizes), found.devices).devices
        slices = [{d.slice_index for d in block.ravel()} for block in devices.reshape(2, 4)]
        assert slices == [{0}, {1}]
    both = make_mesh(MeshConfig(data=2, fsdp=2, tensor=4), topology("4*v5e:2x2").devices).devices
    assert [{d.slice_index for d in block.ravel()} for block in both.reshape(4, 4)] == [{0}, {1}, {2}, {3}]


@needs_tpu
def test_two_processes_plan_at_once(tmp_path):
    """libtpu's lock file let one of them fail: "Internal error when accessing libtpu multi-process lockfile"."""
    code = "from ssljax.parallel.topology import topology; topology('v5e:2x2'); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as first:
        second = subprocess.run(command, input=b"\n", capture_output=True)
        first.communicate(b"\n")
    assert first.returncode == 0 and second.returncode == 0, second.stderr


@needs_gpu
def test_too_many_gpus():
    with pytest.raises(UserError, match="a host has at most 8 GPUs; write h100:2x8"):
        topology("h100:16")


class Chip:
    """A device of a TPU slice, as far as layouts look at it."""

    device_kind, platform, process_index = "TPU v5", "tpu", 0

    def __init__(self, coords, core_on_chip=0):
        self.coords, self.core_on_chip = coords, core_on_chip


def slice_of(x, y, z):
    return [Chip((i, j, k)) for k in range(z) for j in range(y) for i in range(x)]


def test_axes_of_a_network():
    assert mesh.network_axes(slice_of(4, 4, 2)) == (4, 4, 2)
    assert mesh.network_axes(slice_of(4, 1, 1)) == (4,)
    assert mesh.network_axes(slice_of(1, 1, 1)) == (1,)
    assert mesh.network_axes(jax.devices()) == (8,)


def test_a_mesh_that_no_layout_fits_is_one_line():
    with pytest.raises(UserError, match="mesh: data=8 x tensor=8 fits no layout of 4 x 4 x 4 devices"):
        make_mesh(MeshConfig(tensor=8), slice_of(4, 4, 4))


@needs_tpu
@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v4:2x2x2", 8, "TPU v4"),
        ("v5e:4x4", 16, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v6e:2x2", 4, "TPU v6 lite"),
    ],
)
def test_slices_of_tpus(name, count, kind):
    found = topology(name)
    assert len(found.devices) == count and found.devices[0].device_kind == kind
    with mesh_context(make_mesh(MeshConfig(), found.devices)):
        assert platform() == "tpu"


@needs_tpu
@pytest.mark.full
def test_a_slice_that_does_not_exist():
    with pytest.raises(UserError, match="no slice 'v5e:3x3'"):
        topology("v5e:3x3")


@needs_gpu
@pytest.mark.full
def test_hosts_of_gpus():
    found = topology("h100:2x4")
    assert [device.process_index for device in found.devices] == [0] * 4 + [1] * 4
    assert found.chip.name == "h100"
    with mesh_context(make_mesh(MeshConfig(), found.devices)):
        assert platform() == "gpu"
