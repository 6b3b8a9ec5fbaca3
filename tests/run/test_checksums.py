"""Checksums of weights: the same on the host and in shards, of every dtype; a bit that a disk has changed is found."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.parallel.mesh import make_mesh
from simvlm_jax.run import checksums as module
from simvlm_jax.run.checksums import checksums, damaged
from simvlm_jax.run.load import load_run


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.int8, jnp.bool_, jnp.float16])
def test_host_and_device_agree(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (16, 5, 3)) * 3.7, dtype)
    sharded = jax.device_put(x, jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec("data")))
    sums = module._on_devices({"here": x, "sharded": sharded})
    assert module._on_host(np.asarray(x)) == int(sums["here"]) == int(sums["sharded"])


def test_long_arrays_and_what_moves_or_changes(monkeypatch):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    whole = module._on_host(x)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert module._on_host(x) == whole
    swapped = x.copy()
    swapped[[3, 900]] = swapped[[900, 3]]
    flipped = x.copy()
    flipped.view(np.uint32)[500] ^= 1
    assert len({whole, module._on_host(swapped), module._on_host(flipped)}) == 3
    tree = {"a": x, "key": jax.random.key(0)}
    assert (
        damaged({**tree, "a": flipped}, checksums(tree)) == ["a"]
        and not damaged(tree, checksums(tree))
        and not damaged(tree, {})
    )


def test_a_flipped_bit_in_the_files_of_weights_is_found(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    newest = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    largest = max(
        (run / "checkpoints" / str(newest) / "weights").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be read .*put them back or remove that folder"):
        load_run(run)
