"""Device kinds find their row of the table; an unknown one is an error that lists the known."""

import pytest

from ssljax.base.errors import UserError
from ssljax.parallel import hardware


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GB200", "b200"),
        ("NVIDIA L4", "l4"),
        ("TPU v4", "v4"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("cpu", "cpu"),
    ],
)
def test_rows(kind, name):
    assert hardware.chip(kind).name == name


def test_an_unknown_device_is_one_line():
    assert hardware.find("Abacus 9000") is None
    with pytest.raises(UserError, match=r"'Abacus 9000'.*known: .*v5e.*h100.*cpu"):
        hardware.chip("Abacus 9000")


def test_rates_of_types():
    v5e, h100 = hardware.chip("TPU v5 lite"), hardware.chip("NVIDIA H100 80GB HBM3")
    assert v5e.flops("bfloat16") == v5e.flops("float32") == 6 * v5e.flops("float32", highest=True) == 197e12
    assert h100.flops("float16") == h100.flops("bfloat16", highest=True) == 989e12
    assert h100.flops("float32") == 494e12 and h100.flops("float32", highest=True) == 67e12


def test_every_row_is_plausible():
    for chip in hardware.CHIPS:
        assert chip.exact <= chip.float32 <= chip.bfloat16 and chip.network <= chip.link <= chip.bandwidth
        assert 7e9 < chip.memory < 200e9 and (chip.name == "cpu" or 50 < chip.bfloat16 / chip.bandwidth < 700)
