"""The shapes of batches without data: made-up examples go through the transforms of the parts; see data/assemble.py."""

import io
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simvlm_jax.core.types import Batch, Vocabulary, sides_of
from simvlm_jax.data import assemble
from simvlm_jax.data.scenes.graph import sample_scene
from simvlm_jax.data.scenes.tasks import CURTAINS
from simvlm_jax.text.tokenizer import NoTokenizer, Tokenizer


class StandIn:
    """A tokenizer whose texts are one piece: shapes do not depend on what a text says."""

    sha256 = "stand-in"

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary.size - 1]

    ids_of = encode


class _MadeUp:
    """One example with every field that a transform may ask for."""

    def __init__(self, side: int, images: int, answer: str):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file, "PNG")
        picture = {"images": [file.getvalue()] * images} if images > 1 else {"image": file.getvalue()}
        texts = dict.fromkeys(assemble.TEXT_FIELDS, "text") | {"answer": answer, "label": answer}
        texts |= {"text": "<image>" * images + "text"}  # a mark for each, for transforms that look for them
        seen = {"scene": sample_scene(np.random.default_rng(0), 1).to_json(), "curtain": next(iter(CURTAINS))}
        self._example = {"key": "made up", "captions": ["text"], **texts, **picture, **seen}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example

    def key(self, index: int) -> str:
        return "made up"


def stand_in_tokenizer(text: assemble.Section, data: assemble.Section) -> Any:
    """A tokenizer with the vocabulary and text length that a run would have.

    text: config.text, None of a run that reads none. Where it leaves either to the data or to a file, that is read.
    """
    if text is None:
        return NoTokenizer()
    if text.model or not text.length:
        found: Tokenizer = assemble.make_tokenizer(text, data.parts, assemble.part_sources(data))
        return StandIn(found.vocabulary)
    return StandIn(Vocabulary(text.vocabulary, text.length))


def stand_in_labels(size: int) -> tuple[str, ...]:
    """Made-up answers: config.data.labels.size of them are as many as a run can have."""
    return tuple(f"answer {i}" for i in range(size))


def abstract_batch(
    data: assemble.Section, tokenizer: Any, labels: tuple[str, ...], *, batch_size: int, images: int = 1
) -> Batch:
    """The global batch as ShapeDtypeStructs; images: how many an example has."""
    import jax

    one: Any = ConfigDict(data.to_dict())
    rows = {name: assemble.rows_of(part, batch_size) for name, part in assemble.parts_in(data.parts).items()}
    for name in rows:
        one.parts[name].update(rows=1, cache=False)
    source: Any = _MadeUp(max(sides_of(data.image_size)), images, labels[0] if labels else "text")
    sources: Any = dict.fromkeys(rows, source)
    batch = assemble.make_pipeline(one, tokenizer, labels, sources, batch_size=1, seed=0).batch(0)

    def abstract(v: np.ndarray, n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *v.shape[1:]), jax.dtypes.canonicalize_dtype(v.dtype))

    return {name: {k: abstract(v, rows[name]) for k, v in part.items()} for name, part in batch.items()}
