"""What a score depends on, beside every score; and what differs between two of them."""

import dataclasses
import hashlib
import importlib.metadata
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import simvlm_jax
from simvlm_jax.eval.suite import Examples, Suite
from simvlm_jax.infer.answered import Notes
from simvlm_jax.infer.engine import Engine

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow", "sentencepiece", "simvlm_jax")


def provenance(
    engine: Engine, suite: Suite, examples: Examples, notes: Notes, scored: int, step: int
) -> dict[str, Any]:
    """Data, preprocessing, decoding, checkpoint and versions behind the scores of `scored` answers."""
    about = {k: v for k, v in described(suite).items() if k not in ("path", "splits", "limit", "how", "controls")}
    how = suite.decoding()
    return {
        "data": {
            "source": repr(examples.source),
            "fingerprint": examples.fingerprint,
            "examples": scored,
            **({"left_out": examples.left_out} if examples.left_out else {}),
        },
        "prompt": str(how.get("prompt", "")),
        "preprocessing": examples.preprocessing(),
        "decoding": how,
        "suite": about,
        "notes": {k: v for k, v in notes.items() if k != "rerank"},
        **{k: notes[k] for k in ("rerank",) if k in notes},
        "answers": hashlib.sha256("\n".join(engine.labels).encode()).hexdigest()[:16] if engine.labels else None,
        "tokenizer": engine.tokenizer.sha256[:16] or None,
        "text_length": engine.vocabulary.length if engine.tokenizer.sha256 else None,
        "seed": engine.seed,
        "checkpoint": step,
        "weights": weights_hash((engine.params, engine.extra)),
        "versions": {p: version(p) for p in _PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def version(package: str) -> str:
    """A package's version; this one's own too where it runs from its source without an installation."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return simvlm_jax.__version__ if package == simvlm_jax.__name__ else "unknown"


def weights_hash(params: Any) -> str:
    """A hash of all weights: two models of one step are told apart. Every process that holds some must call it."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def described(value: Any) -> Any:
    """A transform or record as plain values; what the run as a whole is told by (tokenizer, answer list) is left out."""
    if isinstance(value, list | tuple):
        return [described(v) for v in value]
    if not dataclasses.is_dataclass(value):
        return value
    kept = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"name": type(value).__name__, **{k: v for k, v in kept.items() if k not in ("tokenizer", "labels")}}


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
