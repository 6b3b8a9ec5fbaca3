"""Nearest vectors to queries: exactly, on the device, block by block; or nearly, by a graph of neighbours."""

import hashlib
from pathlib import Path

import numpy as np

from simvlm_jax.core.files import partial_of
from simvlm_jax.infer.computations import Nearest
from simvlm_jax.infer.engine import Engine
from simvlm_jax.infer.programs import padded, place_whole

BLOCK, BLOCK_OF_TOKENS = 16_384, 256
"""Vectors that are compared at once where an image is one vector, and where a model mixes its tokens for each text."""


def exact(engine: Engine, vectors: np.ndarray, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the vectors [N,...] most similar to each query [Q,E]: (scores [Q,top], places [Q,top]), the best first.

    Of equals the first comes first.
    """
    engine.require("search", "similarity")
    top, block = min(top, len(vectors)), min(BLOCK if vectors.ndim == 2 else BLOCK_OF_TOKENS, len(vectors))
    program = engine.programs.compiled(engine.mesh, Nearest(engine.model, min(top, block)))
    on_devices = place_whole(engine.mesh, queries)
    scores, places = [], []
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        arrays = (
            place_whole(engine.mesh, padded(part, block)),
            on_devices,
            place_whole(engine.mesh, np.int32(len(part))),
        )
        score, place = program(engine.params, engine.extra, *arrays)
        scores.append(np.asarray(score))
        places.append(np.asarray(place) + start)
    score, place = np.concatenate(scores, axis=1), np.concatenate(places, axis=1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(score, order, axis=1), np.take_along_axis(place, order, axis=1)


def approximate(vectors: np.ndarray, queries: np.ndarray, top: int, index: Path) -> tuple[np.ndarray, np.ndarray]:
    """Finds nearly the same by faiss's HNSW graph (arXiv 1603.09320), which is kept beside the index under a hash of its vectors.

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
