"""Rows over devices, and the figures behind MFU."""

import jax
import numpy as np
import pytest

from simvlm_jax.parallel.devices import peak_flops
from simvlm_jax.parallel.mesh import make_mesh, place_batch


def test_rows_lie_on_their_devices():
    mesh = make_mesh()
    batch = {"pairs": {"image": np.arange(16 * 3).reshape(16, 3)}, "documents": {"text": np.arange(8)}}
    placed = place_batch(mesh, batch)
    for path, there in jax.tree_util.tree_leaves_with_path(placed):
        here = batch[path[0].key][path[1].key]
        np.testing.assert_array_equal(there, here)
        assert len(there.addressable_shards) == 8
        assert {s.data.shape[0] for s in there.addressable_shards} == {len(here) // 8}


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match=r"12 rows do not divide over 8 devices.*multiple of 8"):
        place_batch(make_mesh(), {"text": np.zeros((12, 2))})


@pytest.mark.parametrize(("kind", "tflops"), [("TPU v5 lite", 197), ("TPU v5p", 459), ("NVIDIA H200 141GB", 989)])
def test_known_devices(kind, tflops):
    class Device:
        device_kind = kind

    assert peak_flops(Device()) == tflops * 1e12


def test_a_cpu_is_measured():
    assert 1e8 < peak_flops() < 1e13
