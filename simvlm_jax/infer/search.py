"""The best of many vectors: exactly, on the device, in flat memory; or nearly, by a graph of neighbours."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.files import partial_of
from simvlm_jax.core.layout import with_layout
from simvlm_jax.infer.engine import Engine, filled
from simvlm_jax.parallel.mesh import layout_of, replicated

BLOCK = 16_384
"""Vectors that are compared at once, of one vector an image; a model that mixes tokens for each pair takes fewer."""


def exact(engine: Engine, vectors: np.ndarray, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores [Q,top], places [Q,top]) of the vectors [N,...] that are most like each query [Q,E], the best first.

    Of equals the first comes first.
    """
    top, block = min(top, len(vectors)), min(BLOCK if vectors.ndim == 2 else 256, len(vectors))
    similarity = engine.needs("search", "similarity")["similarity"]

    def best(params, extra, part, queries, real):
        alike = similarity(params, extra, part, queries).T
        return jax.lax.top_k(jnp.where(jnp.arange(block) < real, alike, -jnp.inf), min(top, block))

    whole = replicated(engine.mesh)
    run = jax.jit(
        with_layout(layout_of(engine.mesh), best), in_shardings=(None, None, whole, whole, whole), out_shardings=whole
    )
    scores, places = [], []
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        found = run(engine.params, engine.extra, filled(part, block), queries, len(part))
        scores.append(np.asarray(found[0]))
        places.append(np.asarray(found[1]) + start)
    score, place = np.concatenate(scores, axis=1), np.concatenate(places, axis=1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(score, order, axis=1), np.take_along_axis(place, order, axis=1)


def approximate(vectors: np.ndarray, queries: np.ndarray, top: int, index: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same, nearly, by faiss's HNSW graph, which is kept beside the index under a hash of its vectors.

    Raises:
      ValueError: faiss is missing, or an image is not one vector.
    """
    if vectors.ndim > 2:
        raise ValueError("this model gives an image a vector only for a text; search exactly, without --approximate")
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ValueError("--approximate needs faiss; install it with: pip install faiss-cpu") from e
    vectors = np.ascontiguousarray(vectors, np.float32)
    digest = hashlib.blake2b(vectors.tobytes(), digest_size=6).hexdigest()
    path = index.with_name(f"{index.name}.{digest}.hnsw")
    if path.exists():
        graph = faiss.read_index(str(path))
    else:
        graph = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.add(vectors)  # pyright: ignore[reportCallIssue]
        partial = partial_of(path)
        try:
            faiss.write_index(graph, str(partial))
            partial.replace(path)
        except (OSError, RuntimeError) as e:  # faiss's own kind, of a full disk
            raise OSError(f"{path} could not be written ({e}); free some space, or search without --approximate") from e
        finally:
            partial.unlink(missing_ok=True)
    top = min(top, len(vectors))
    graph.hnsw.efSearch = max(128, 2 * top)
    scores, places = graph.search(np.ascontiguousarray(queries, np.float32), top)
    if (places < 0).any():  # a graph may not reach that many
        raise ValueError(
            f"the graph finds fewer than {top} neighbours; ask for fewer by --top, or leave --approximate out"
        )
    return scores, places
