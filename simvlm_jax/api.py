"""A trained run in Python: `run = simvlm_jax.load("runs/prefixlm"); run.caption("photo.jpg")`.

Pictures are paths, bytes of a file, PIL images or arrays [Y,X,3] or [Y,X] uint8. One picture (or text) in, one answer out; a list in,
a list out; an empty list is an error. What a run cannot do is an error that names what its model lacks.
"""

import dataclasses
import functools
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from simvlm_jax.core.files import read_bytes
from simvlm_jax.core.schema import Count, Positive, Seed, check
from simvlm_jax.core.trust import check_arguments
from simvlm_jax.core.trust import trust as trusted
from simvlm_jax.data.assemble import eval_pixels
from simvlm_jax.data.images import BadImage, as_rgb
from simvlm_jax.data.transforms import NO_DRAWS
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.eval.suite import probabilities
from simvlm_jax.eval.zero_shot import check_templates, class_vectors, name_in
from simvlm_jax.infer.answered import Answered, describe_cuts
from simvlm_jax.infer.engine import Engine, MissingCapability, load_engine
from simvlm_jax.infer.prompts import prompt_width, text_rows

T = TypeVar("T")
Picture = str | os.PathLike | bytes | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can be asked; made by `load`."""

    path: Path
    step: int
    engine: Engine
    pixels: Callable[[dict[str, Any], Any], dict[str, Any]]

    def __repr__(self):
        return f"<{type(self.engine.model).__name__} of {self.path}, step {self.step}: {', '.join(self.can)}>"

    @property
    def can(self) -> list[str]:
        """What this run can be asked: names of its methods."""
        able, found = self.engine.model.capabilities(), []
        writes, sees = {"prefill", "extend"} <= set(able), hasattr(self.engine.model, "image_size")
        reads = self.engine.reads
        if writes:
            found += ["caption"] if sees else ["complete"]
            found += ["chat"] if not sees and self.engine.tokenizer.chat else []
        if sees and reads and (writes or "classify" in able):
            found += ["ask"]
        if "embed_image" in able or "embed_text" in able:
            found += ["embed"]
        if {"embed_image", "embed_text", "similarity"} <= set(able):
            found += ["similarity"]
        if "caption" in found or "similarity" in found or (sees and "classify" in able and not reads):
            found += ["classify"]
        return found

    def caption(
        self, images: Picture | Sequence[Picture], prompt: str = "", *, seed: int = 0, **how: Any
    ) -> str | list[str]:
        """Captions, as text. how: fields of Decoding (beams, max_length, ...) and of Sampler (temperature, top_k, top_p).

        Raises:
          MissingCapability: the model does not write. BadImage: a picture cannot be read; the message has its place.
        """
        decoding = _decoding(how)
        _check(prompt, str, "prompt")
        _check(seed, Seed, "seed")
        made, one = self._pictures(images)
        ids = np.asarray([zlib.crc32(row.tobytes()) for row in made], np.int64)
        found = self._warned(self.engine.generate(made, [prompt] * len(made), ids, decoding, seed=int(seed)))
        texts = [f"{prompt} {answers[0][0]}".strip() for answers in found]
        return texts[0] if one else texts

    def ask(
        self, images: Picture | Sequence[Picture], question: str | Sequence[str], *, max_length: int = 8, **how: Any
    ) -> str | list[str]:
        """Answers to a question about each picture, or to a question a picture.

        A run that classifies answers with the likeliest of its answer list; another writes its answer.
        """
        decoding = _decoding({"max_length": max_length, **how})
        questions, same = _texts(question, "question")
        made, one = self._pictures(images)
        questions = questions * len(made) if same else questions
        if len(questions) != len(made):
            raise ValueError(
                f"{len(questions)} questions for {len(made)} pictures; give one question, or one per picture"
            )
        engine = self.engine
        if engine.labels and engine.has("classify"):
            rows = self._warned(text_rows(engine.tokenizer, questions))
            given = np.maximum(rows["text_mask"].sum(1).astype(np.int32) - 1, 0)  # all but EOS are read
            likely = engine.apply("answering", "classify", {"image": made, **rows, "prefix_length": given})
            answers = [engine.labels[int(i)] for i in likely.argmax(-1)]
        else:
            width = prompt_width(engine.vocabulary, decoding.max_length)
            ids = np.zeros(len(made), np.int64)
            found = self._warned(engine.generate(made, questions, ids, decoding, width=width))
            answers = [a[0][0] for a in found]
        return answers[0] if one else answers

    def complete(
        self, prompts: str | Sequence[str], *, seed: int = 0, max_length: int = 64, **how: Any
    ) -> str | list[str]:
        """What a language model writes after each text. how: as in `caption`.

        Raises:
          MissingCapability: the model does not write.
        """
        decoding = _decoding({"max_length": max_length, **how})
        _check(seed, Seed, "seed")
        given, one = _texts(prompts, "prompts")
        ids = np.asarray([zlib.crc32(t.encode("utf-8", "surrogatepass")) for t in given], np.int64)
        found = self._warned(self.engine.generate(None, given, ids, decoding, seed=int(seed), joined=True))
        texts = [answers[0][0] for answers in found]
        return texts[0] if one else texts

    def chat(self, messages: str | Sequence[dict[str, str]], **how: Any) -> str:
        """The answer of a language model that chats. messages: what a person says, or {"role", "content"} of all that was said.

        how: as in `complete`.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        answer = self.complete(self.engine.chat_of(said), **how)
        return str(answer).strip()

    def embed(
        self, images: Picture | Sequence[Picture] | None = None, *, texts: str | Sequence[str] | None = None
    ) -> np.ndarray:
        """Vectors in the shared space: float32 [E] of one picture or text, [N,E] of a list.

        (Where a model mixes an image's tokens for every text, an image is its tokens: [tokens,E].)
        """
        if (images is None) == (texts is None):
            raise ValueError("embed takes pictures, or texts=...; give one of the two")
        if texts is not None:
            given, one = _texts(texts, "texts")
            found = self._warned(self.engine.embed_texts(given))
        else:
            assert images is not None
            made, one = self._pictures(images)
            found = self.engine.embed_images(made)
        return found[0] if one else found

    def similarity(self, images: Picture | Sequence[Picture], texts: str | Sequence[str]) -> float | np.ndarray:
        """How alike pictures and texts are: [N,K], the higher the more; a number for one of each."""
        given, single = _texts(texts, "texts")
        made, one = self._pictures(images)
        vectors = self._warned(self.engine.embed_texts(given))
        found = self.engine.similarity(self.engine.embed_images(made), vectors)
        return float(found[0, 0]) if one and single else found[0] if one else found[:, 0] if single else found

    def classify(
        self,
        images: Picture | Sequence[Picture],
        labels: Sequence[str] = (),
        templates: str | Sequence[str] = ("{a} {name}",),
    ) -> dict[str, float] | list[dict[str, float]]:
        """{name: probability} of each picture over names of your own, the likeliest first.

        A model without a shared space takes the likelihood of saying a name, by one template; a classifier of images names its own
        answers, or those of them that are listed.
        """
        labels = labels or ([] if self.engine.reads else self.engine.labels)
        given, single = _texts(labels, "labels")
        names = tuple(dict.fromkeys(given))
        if single or len(names) < 2:
            raise ValueError(f"labels {labels!r:.80}: give a list of two names at least")
        sentences, _ = _texts(templates, "templates")
        check_templates(sentences)
        made, one = self._pictures(images)
        likely = probabilities(self._warned(name_scores(self.engine, names, sentences))(made))
        order = np.argsort(-likely, axis=1, kind="stable")
        found = [{names[j]: float(row[j]) for j in places} for row, places in zip(likely, order, strict=True)]
        return found[0] if one else found

    def _warned(self, answered: Answered[T]) -> T:
        """The values, after a warning where a text or a prompt of the caller's was cut."""
        given = {k: v for k, v in answered.notes.items() if k != "answers_cut"}
        for sentence in describe_cuts(given, self.engine.vocabulary.length) if given else ():
            warnings.warn(sentence, stacklevel=3)
        return answered.values

    def _pictures(self, images: Picture | Sequence[Picture]) -> tuple[np.ndarray, bool]:
        """(pixels [N,M,Y,X,C] uint8, whether one picture was given)."""
        one = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray)
        if not one and not isinstance(images, Iterable):
            raise ValueError(f"images {images!r:.80}: give a path, bytes, a PIL image or an array, or a list of these")
        given: list[Any] = [images] if one else list(images)  # pyright: ignore
        if not given:
            raise ValueError(f"images {images!r:.80}: there are no pictures; give one or a list of them")
        rows = []
        for i, picture in enumerate(given):
            try:
                rows.append(self.pixels({"image": _encoded(picture)}, NO_DRAWS)["image"])
            except (ValueError, OSError) as e:
                which = str(picture) if isinstance(picture, str | os.PathLike) else f"picture {i}"
                raise BadImage(f"{which}: {e.strerror if isinstance(e, OSError) and e.strerror else e}") from e
        return np.stack(rows), one


def load(
    path: str | os.PathLike, step: int | None = None, *, batch_size: int = 32, trust: str | Sequence[str] = ()
) -> Run:
    """A trained run, ready to be asked. step: a checkpoint's (default: the best, or the newest). trust: packages whose classes its
    config may name, beside this one.

    Raises:
      FileNotFoundError: no run, or no checkpoint. NotAllowed: its config names what files may not name.
    """
    _check(step, Count | None, "step")
    _check(batch_size, Positive, "batch_size")
    for package in [trust] if isinstance(trust, str) else trust:
        trusted(package)
    engine, run = load_engine(str(path), step, batch_size)
    return Run(Path(path), run.step, engine, eval_pixels(run.config.data))


def name_scores(
    engine: Engine, names: Sequence[str], templates: Sequence[str]
) -> Answered[Callable[[np.ndarray], np.ndarray]]:
    """Makes the function from pixels [N,M,Y,X,C] to logits [N,names]: by the similarity of names in sentences, by how likely a
    captioner says one, or by the head of a classifier.

    Raises:
      ValueError: several templates for a captioner, or names that a classifier does not know. MissingCapability: the model can do
      none of it.
    """
    if engine.has("classify") and not engine.reads:
        if strange := [name for name in names if name not in engine.labels]:
            raise ValueError(
                f"{strange[0]!r:.60} is none of the {len(engine.labels)} answers of this classifier (labels.json)"
            )
        places = np.asarray([engine.labels.index(name) for name in names])
        return Answered(lambda images: engine.apply("naming pictures", "classify", {"image": images})[:, places], {})
    if engine.has("similarity"):
        vectors, notes = class_vectors(engine, names, templates)
        scale = engine.logit_scale()
        return Answered(lambda images: scale * engine.similarity(engine.embed_images(images), vectors), notes)
    if not engine.has("prefill"):
        raise MissingCapability(
            f"naming pictures needs similarity or prefill, which {type(engine.model).__name__} lacks"
        )
    if len(templates) > 1:
        raise ValueError("this run is a captioner, which says one sentence a name; give one template")
    texts = [name_in(templates[0], name) for name in names]
    return Answered(lambda images: engine.likelihoods(images, [""] * len(images), texts).values, {})


@functools.cache
def _names(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cls))


def _decoding(how: dict[str, Any]) -> Decoding:
    """Decoding of its own fields and those of its sampler."""
    if unknown := set(how) - _names(Decoding) - _names(Sampler):
        known = ", ".join(sorted((_names(Decoding) | _names(Sampler)) - {"sampler"}))
        raise ValueError(f"no way of decoding is called {', '.join(sorted(unknown))}; there are {known}")
    draws, rest = ({k: v for k, v in how.items() if k in _names(cls)} for cls in (Sampler, Decoding))
    check_arguments(Sampler, draws, "decoding")
    check_arguments(Decoding, rest, "decoding")
    return Decoding(**{"sampler": Sampler(**draws), **rest})


def _check(value: Any, kind: Any, name: str) -> None:
    """Checks an argument; numpy's numbers are numbers."""
    check(value.item() if isinstance(value, np.generic) else value, kind, name)


def _texts(given: Any, name: str) -> tuple[list[str], bool]:
    """(texts, whether one text was given and no list of them) of an argument of that name.

    Raises:
      ValueError: it is neither, or there are no texts.
    """
    if isinstance(given, str):
        return [given], True
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise ValueError(f"{name} {given!r:.80}: give a text or a list of texts")
    texts = list(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}: number {i} is {text!r:.80}, not text; give a text or a list of texts")
    if not texts:
        raise ValueError(f"{name} {given!r:.80}: there are no texts; give one or a list of them")
    return texts, False


def _encoded(picture: Any) -> Any:
    if isinstance(picture, str | os.PathLike):
        return read_bytes(picture)
    if isinstance(picture, Image.Image):
        return np.asarray(as_rgb(picture))
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype != np.uint8
            or picture.ndim not in (2, 3)
            or (picture.ndim == 3 and picture.shape[2] not in (3, 4))
        ):
            raise ValueError(f"an array must be uint8 [Y,X,3] or [Y,X], not {picture.dtype} {list(picture.shape)}")
        return np.asarray(as_rgb(Image.fromarray(picture)))
    if not isinstance(picture, bytes):
        raise ValueError(f"a {type(picture).__name__} is no path, bytes, PIL image or array")
    return picture
