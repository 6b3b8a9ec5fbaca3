"""What a score depends on, beside every score; and what differs between two of them."""

import dataclasses
import hashlib
import importlib.metadata
from typing import Any

import jax

from simvlm_jax.eval.engine import Engine
from simvlm_jax.eval.suite import Examples, Suite

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "sentencepiece", "simvlm_jax")
_PROBES = 32


def provenance(engine: Engine, suite: Suite, examples: Examples, scored: int, step: int) -> dict[str, Any]:
    """Data, preprocessing, decoding, checkpoint and versions behind the scores of `scored` answers."""
    fields = {f.name: getattr(suite, f.name) for f in dataclasses.fields(suite)}
    rest = {k: v for k, v in fields.items() if k not in ("path", "splits", "limit", "how", "transforms")}
    how = suite.decoding()
    return {
        "data": {"source": repr(examples.source), "fingerprint": fingerprint(examples), "examples": scored},
        "prompt": str(how.get("prompt", "")),
        "preprocessing": examples.preprocessing(),
        "decoding": how,
        "suite": {"name": type(suite).__name__, **{k: repr(v) for k, v in rest.items()}},
        "answers": hashlib.sha256("\n".join(engine.labels).encode()).hexdigest()[:16] if engine.labels else None,
        "tokenizer": engine.tokenizer.sha256[:16],
        "seed": engine.seed,
        "checkpoint": step,
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def fingerprint(examples: Examples) -> str:
    """A hash of what is evaluated: how many, every key, and the whole content of an even spread of them."""
    digest = hashlib.sha256(str(len(examples.indices)).encode())
    for i in examples.indices:
        digest.update(str(examples.source.key(i)).encode())
    for i in examples.indices[:: max(len(examples.indices) // _PROBES, 1)]:
        try:
            example = examples.source[i]
        except Exception as e:  # a bad example is part of the data
            digest.update(type(e).__name__.encode())
            continue
        for name in sorted(example):
            digest.update(name.encode() + _bytes(example[name]))
    return digest.hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value))
    return value.tobytes() if hasattr(value, "tobytes") else str(value).encode()


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(field, value in a, value in b) of everything in which two provenances differ."""
    out: list[tuple[str, Any, Any]] = []
    for k in sorted({*a, *b}):
        x, y = a.get(k), b.get(k)
        if isinstance(x, dict) and isinstance(y, dict):
            out += differences(x, y, f"{prefix}{k}.")
        elif x != y:
            out.append((f"{prefix}{k}", x, y))
    return out
