"""What a device can do at best, for model FLOPs utilisation."""

import time

import jax
import jax.numpy as jnp

_PEAK_TFLOPS = {  # dense bfloat16, from the makers' data sheets
    "TPU v3": 61.5,  # a core, as jax counts v3 devices
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def peak_flops(device=None) -> float:
    """FLOP/s of one device: by data sheet, or, where none is known (CPUs), of a matrix product measured now.

    All CPU devices of a process share its cores, so a CPU's figure is divided by their number.
    """
    device = device or jax.devices()[0]
    known = [(name, tflops) for name, tflops in _PEAK_TFLOPS.items() if device.device_kind.startswith(name)]
    if known:
        return max(known, key=lambda item: len(item[0]))[1] * 1e12
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
