"""What devices can do at best: for model FLOPs utilisation, and for plans of machines that are not here.

Figures are of one device as jax counts them: a core of a TPU v3, half a chip of a TPU7x, else a chip.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Device:
    """tflops: dense bfloat16. hbm: bytes. hbm_rate, link_rate: bytes/s to memory, and into the device over all its links."""

    tflops: float
    hbm: float
    hbm_rate: float
    link_rate: float


_G = 2.0**30
_DEVICES = {  # from the makers' data sheets; TPU links as in "How to Scale Your Model" (Austin et al. 2025), chapter 2
    "TPU v3": Device(61.5, 16 * _G, 450e9, 164e9),
    "TPU v4": Device(275.0, 32 * _G, 1228e9, 270e9),
    "TPU v5 lite": Device(197.0, 16 * _G, 819e9, 180e9),
    "TPU v5e": Device(197.0, 16 * _G, 819e9, 180e9),
    "TPU v5": Device(459.0, 95 * _G, 2765e9, 540e9),
    "TPU v5p": Device(459.0, 95 * _G, 2765e9, 540e9),
    "TPU v6 lite": Device(918.0, 32 * _G, 1640e9, 360e9),
    "TPU v6e": Device(918.0, 32 * _G, 1640e9, 360e9),
    "TPU7x": Device(1153.5, 96 * _G, 3690e9, 300e9),
    "NVIDIA A100": Device(312.0, 80e9, 2039e9, 300e9),
    "NVIDIA H100": Device(989.0, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Device(989.0, 141e9, 4800e9, 450e9),
}


def known_device(kind: str) -> Device | None:
    """The figures of a device by jax's `device_kind`; the longest name that it begins with counts."""
    known = [name for name in _DEVICES if kind.startswith(name)]
    return _DEVICES[max(known, key=len)] if known else None


def peak_flops(device=None) -> float:
    """FLOP/s of one device: by data sheet, or, where none is known (CPUs), of a matrix product measured now.

    All CPU devices of a process share its cores, so a CPU's figure is divided by their number.
    """
    device = device or jax.local_devices()[0]
    if known := known_device(device.device_kind):
        return known.tflops * 1e12
    on_cpu = device.platform == "cpu"
    n, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    a = jax.device_put(jnp.ones((n, n), dtype), device)
    jax.block_until_ready(product(a))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - began)
    return 2.0 * n**3 / best / (jax.local_device_count() if on_cpu else 1)


def copy_rate() -> float:
    """Bytes/s that this machine reads and writes while it copies memory, measured now."""
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2.0 * source.nbytes / best
