"""A model is written tensor by tensor: the host never holds a second copy of it."""

import json
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.interop import hf
from ssljax.interop.export import of_module
from ssljax.interop.tensors import Planned, Tensors, planned, write

KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32")
SIZE = {"width": 256, "depth": 8, "heads": 4, "vocab_size": 1024, "max_len": 64}


@pytest.fixture(scope="module")
def model():
    """A LLaMA whose largest tensor has 1 MB, with parameters of NumPy as read from a checkpoint."""
    module = schema.build_named(models.REGISTRY, {"name": "llama", "preset": None, **SIZE}, "model").standalone()
    shapes = jax.eval_shape(lambda: module.initial(jax.random.key(0)))["params"]
    rng = np.random.default_rng(0)
    leaves = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), hf.flat(unboxed(shapes)))
    return of_module(module, hf.tree(leaves), causal=True)


def unboxed(tree):
    from ssljax import parallel

    return parallel.unboxed(tree)


def test_saving_holds_one_tensor_at_a_time(model, tmp_path):
    """Before, the peak was twice the size of the model: all tensors, and all their bytes."""
    total = 4 * model.parameters
    tracemalloc.start()
    try:
        hf.save(model, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(array.nbytes for array in safetensors.numpy.load_file(tmp_path / "model.safetensors").values())
    assert total > 8 * largest and peak < 4 * largest, (total, largest, peak)


def test_a_saved_file_is_the_one_that_the_library_writes(model, tmp_path):
    hf.save(model, tmp_path)
    tensors = hf.tensors_of(model, model.variables["params"])
    safetensors.numpy.save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    ours, theirs = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("model", "library"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_number(kind, tmp_path):
    dtype = jax.numpy.dtype(kind)
    tensors = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b c/ü": np.zeros((0, 3), dtype), "s": np.array(2, dtype)}
    write({name: planned(value.T) for name, value in tensors.items()}, tmp_path)
    read = Tensors(tmp_path)
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == dtype and read.shape(name) == value.T.shape
        np.testing.assert_array_equal(read[name], value.T)
    size = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert size % 8 == 0 and json.loads((tmp_path / "model.safetensors").read_bytes()[8 : 8 + size])


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    write({"a": planned(np.ones(3))}, tmp_path)

    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write({"a": Planned((3,), np.dtype("float32"), fail)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    np.testing.assert_array_equal(Tensors(tmp_path)["a"], np.ones(3))


@pytest.mark.parametrize("folder", ["gs://bucket/model", ""])
def test_folders_that_cannot_be_written(model, folder):
    with pytest.raises(UserError, match=r"must be the path|cannot be used"):
        hf.save(model, folder)
