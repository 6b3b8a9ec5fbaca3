"""The process around JAX: exit codes, huge pages, XLA flags and the compilation cache. Importing it does not load jax."""

import importlib.metadata
import os
import sys
from pathlib import Path

EXIT_INTERRUPTED, EXIT_HOST_LOST = 75, 76
"""Exit codes of a run that was interrupted, and of one that lost a process; the same command continues both."""

_TRIED = ("0.10.2", "0.12.0.1")
"""The jaxlib releases that have the flags below; a flag that XLA does not know aborts the process."""

_YNN = "xla_cpu_experimental_ynn_fusion_type"
CPU_FLAGS: dict[str, tuple[str, ...]] = dict.fromkeys(_TRIED, (f"--{_YNN}=", "--xla_cpu_prefer_vector_width=512"))
"""XLA flags under which small models train fastest on CPU, by jaxlib release (benchmarks/cpu_step.md)."""

_CPU_DECODING = {_YNN: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""Compiler options under which decoding steps are fastest on CPU (benchmarks/decode_step.md)."""


def use_huge_pages() -> None:
    """Restarts the process with huge pages in malloc, which glibc takes from its environment alone.

    XLA allocates its temporaries anew at every step; on CPU a sixth of a small model's step was page faults.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def setup_xla() -> None:
    """Sets the XLA flags under which small models train fastest on CPU; those in XLA_FLAGS go before them."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = CPU_FLAGS.get(importlib.metadata.version("jaxlib"), ())
    os.environ["XLA_FLAGS"] = " ".join([*(f for f in flags if f.partition("=")[0] not in given), given]).strip()


def decoding_options(platform: str) -> dict[str, str]:
    """Compiler options of `jax.jit` under which decoding steps are fastest on a platform.

    Flags in XLA_FLAGS go before them, but for the values that `setup_xla` itself sets for training.
    """
    release = importlib.metadata.version("jaxlib")
    if platform != "cpu" or release not in _TRIED:
        return {}
    given = [f for f in os.environ.get("XLA_FLAGS", "").split() if f not in CPU_FLAGS[release]]
    return {k: v for k, v in _CPU_DECODING.items() if not any(f.startswith(f"--{k}=") for f in given)}


def setup_jax() -> None:
    """Sets the compilation cache, so that a second run starts at once; JAX_COMPILATION_CACHE_DIR overrides the place."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "simvlm_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
