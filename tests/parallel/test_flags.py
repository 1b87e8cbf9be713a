"""Options of XLA by platform: none for CPUs and single devices; what a compiler does not know is left out."""

import jax
import pytest
from absent_hardware import needs_gpu, needs_tpu

from ssljax.parallel import MeshConfig, flags, make_mesh
from ssljax.parallel.topology import topology


def test_cpus_have_none():
    assert flags.options(make_mesh(MeshConfig())) == {}


def test_unknown_options_are_left_out():
    mesh = make_mesh(MeshConfig())
    wanted = (("xla_backend_optimization_level", 0), ("xla_no_such_option", True))
    assert flags.known(mesh, wanted) == {"xla_backend_optimization_level": 0}


def test_other_errors_of_the_compiler_are_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        flags.known(make_mesh(MeshConfig()), (("xla_backend_optimization_level", "fast"),))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "platform"),
    [pytest.param("v5e:2x4", "tpu", marks=needs_tpu), pytest.param("h100:8", "gpu", marks=needs_gpu)],
)
def test_the_compilers_know_all_options_of_the_table(name, platform):
    devices = topology(name).devices
    assert flags.options(make_mesh(MeshConfig(), devices)) == flags._HIDING[platform]
    found = flags.options(make_mesh(MeshConfig(tensor=2), devices))
    assert found == flags._HIDING[platform] | flags._COLLECTIVE_PRODUCTS[platform]
    assert flags.options(make_mesh(MeshConfig(), devices[:1])) == {}
