"""Machines that a program can be compiled for without having them: `v5e:4x4`, `v4:8x16x16`, `h200x8`, `cpux8`."""

import dataclasses
import math
import os
import re
from typing import Any

from simvlm_jax.parallel.devices import Device, known_device

TPUS = ("v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
GPUS = {"a100": "NVIDIA A100", "h100": "NVIDIA H100", "h200": "NVIDIA H200"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine. platform: "tpu", "gpu" or "cpu". topology: of TPU chips, or the number of devices."""

    name: str
    platform: str
    kind: str
    topology: str

    def environment(self) -> dict[str, str]:
        """What must be in the environment before jax is imported, so that it compiles for this target."""
        if self.platform == "tpu":
            quiet = {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3"}
            absent = {  # what libtpu would ask the machine; what the topology describes counts
                "TPU_SKIP_MDS_QUERY": "1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                "TPU_WORKER_HOSTNAMES": "localhost",
                "TPU_ACCELERATOR_TYPE": "v4-8",
            }
            return {"JAX_PLATFORMS": "cpu", **absent, **quiet}
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        made = f"--xla_force_host_platform_device_count={self.topology} {flags}".strip()
        return {"XLA_FLAGS": made, **({"JAX_PLATFORMS": "cpu"} if self.platform == "cpu" else {})}

    def devices(self) -> list[Any]:
        """The devices to compile for: descriptions of TPUs; this machine's GPUs if they are the ones; else CPU stand-ins.

        Raises:
          ValueError: libtpu is not installed, or does not know the topology.
        """
        import jax

        if self.platform == "tpu":
            return _described(self.kind, self.topology)
        wanted = int(self.topology)
        here = [d for d in jax.devices() if self.platform == "cpu" or d.device_kind.startswith(GPUS[self.kind])]
        found = here if len(here) >= wanted else jax.devices("cpu")
        if len(found) < wanted:
            raise ValueError(
                f"{self.name} needs {wanted} devices and this process has {len(found)}; start it with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
            )
        return found[:wanted]

    def figures(self, devices: list[Any]) -> Device:
        """What one of its devices can do; of CPUs, what can be measured or read off now, shared among them."""
        if self.platform == "cpu":
            from simvlm_jax.parallel.devices import copy_rate, peak_flops

            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            rate = copy_rate() / len(devices)
            return Device(peak_flops() * 1e-12, memory / len(devices), rate, rate)
        known = known_device(GPUS[self.kind] if self.platform == "gpu" else devices[0].device_kind)
        assert known is not None, devices[0].device_kind
        return known


MOST_STAND_INS = 1024
"""CPU devices that one process makes up to compile for."""


def parse_target(name: str) -> Target:
    """A target by name.

    Raises:
      ValueError: naming the ones there are.
    """
    kind, mark, rest = name.partition(":")
    if mark and kind in TPUS and re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", rest):
        return Target(name, "tpu", kind, rest)
    found = re.fullmatch(r"(\w+?)x(\d{1,6})", name)
    if found and int(found[2]) > MOST_STAND_INS and (found[1] == "cpu" or found[1] in GPUS):
        raise ValueError(
            f"target {name!r} has more than {MOST_STAND_INS:,} devices, which is the most that are planned for"
        )
    if found and int(found[2]) and (found[1] == "cpu" or found[1] in GPUS):
        return Target(name, "cpu" if found[1] == "cpu" else "gpu", found[1], found[2])
    raise ValueError(
        f"target {name!r} is not one of: a TPU and its topology ({', '.join(TPUS)}, as in v5e:4x4 or v5p:4x4x4), GPUs of one "
        f"machine ({', '.join(GPUS)}, as in h200x8), or cpux8"
    )


def _described(kind: str, topology: str) -> list[Any]:
    from jax.experimental import topologies

    name = f"{kind}:{topology}"
    more: dict[str, Any] = (
        {"chip_config_name": "megacore"} if kind == "v4" else {}
    )  # both cores of a chip as one device
    sides = [int(n) for n in topology.split("x")]
    if math.prod(sides) < 4:  # a part of a host, which libtpu takes to have four chips or more unless it is told
        more["chips_per_host_bounds"] = [*sides, 1, 1][:3]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
    except ModuleNotFoundError as e:
        raise ValueError(f"{name} needs libtpu to be described; pip install -e .[tpu]") from e
    except Exception as e:
        hint = "" if "libtpu" not in str(e).lower() else "; is libtpu installed (pip install -e .[tpu])?"
        raise ValueError(f"libtpu does not describe {name}: {str(e).partition(chr(10))[0]}{hint}") from e
