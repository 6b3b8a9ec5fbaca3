"""A model that can be asked: batches of any number of rows, padded to one compiled size, answered exactly once a row."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from simvlm_jax.core.layout import with_layout
from simvlm_jax.core.schema import Seed, check
from simvlm_jax.core.types import Model, Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.rank import likelihoods
from simvlm_jax.parallel.mesh import layout_of, place_everywhere, replicated, row_shards
from simvlm_jax.run.load import Loaded, load_run
from simvlm_jax.text.padding import pad_rows
from simvlm_jax.text.tokenizer import Tokenizer, clean

Answers = list[list[tuple[str, float]]]
"""For every row its hypotheses, the best first, each with its score."""


_BLOCK = 256
"""Images and texts that are compared at once: a model may mix an image's tokens for every pair."""


MOST_ROWS = 2**16
"""Of a compiled call."""


class MissingCapability(ValueError):
    """The model cannot do what is asked of it."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model with its weights, tokenizer and answer list.

    batch_size: most rows of a compiled call, rounded up to a multiple of the mesh. Results never depend on it.
    """

    model: Model
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    params: Any = None
    extra: Any = None
    labels: tuple[str, ...] = ()
    batch_size: int = 100
    seed: int = 0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    """What came up while answering and belongs beside the scores: prompts that were cut, classes that were found."""
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not 1 <= self.batch_size <= MOST_ROWS:
            raise ValueError(f"batch_size {self.batch_size} must be between 1 and {MOST_ROWS:,}")
        check(self.seed, Seed, "seed")
        shards = row_shards(self.mesh)
        object.__setattr__(self, "batch_size", -(-self.batch_size // shards) * shards)

    def with_weights(self, params: Any, extra: Any) -> "Engine":
        """The same engine, compiled functions and all, with other weights."""
        return dataclasses.replace(self, params=params, extra=extra)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def needs(self, what: str, *names: str) -> dict[str, Callable]:
        """The model's capabilities.

        Raises:
          MissingCapability: one of `names` is not among them.
        """
        able = self.model.capabilities()
        if missing := [name for name in names if name not in able]:
            raise MissingCapability(f"{what} needs {', '.join(missing)}, which {type(self.model).__name__} lacks")
        return able

    def over(self, name: Any, function: Callable[[Any, Any, dict], Any], rows: dict[str, np.ndarray]) -> Any:
        """`function(params, extra, batch)` over rows [N,...] of any N, as numpy; compiled once for a name and shapes.

        The last batch is filled up with copies of its last row, whose results are dropped.
        """
        name = (self.model, self.mesh, name)
        if name not in self._compiled:
            laid_out = with_layout(layout_of(self.mesh), function)
            self._compiled[name] = jax.jit(laid_out, out_shardings=replicated(self.mesh))
        found, total, size = [], len(next(iter(rows.values()))), self._rows_of_a_call(name, rows)
        for start in range(0, total, size):
            batch = {k: v[start : start + size] for k, v in rows.items()}
            real = len(next(iter(batch.values())))
            batch = {k: filled(v, size) for k, v in batch.items()}
            got = self._compiled[name](self.params, self.extra, place_everywhere(self.mesh, batch))
            found.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], got))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def _rows_of_a_call(self, name: Any, rows: dict[str, np.ndarray]) -> int:
        """`batch_size`; where there are fewer rows in all, the fewest that an earlier call was compiled for and that hold them,
        else they themselves, rounded up to a power of two for each part of the mesh.

        So the last batch of many is filled up, and a few rows are not filled up to thousands.
        """
        shapes = tuple((k, v.shape[1:], v.dtype) for k, v in sorted(rows.items()))
        known: set[int] = self._compiled.setdefault((name, shapes), set())
        total, shards = len(next(iter(rows.values()))), row_shards(self.mesh)
        if fits := [n for n in known if total <= n <= self.batch_size]:
            return min(fits)
        needed = min(self.batch_size, shards * 2 ** (-(-total // shards) - 1).bit_length())
        known.add(needed)
        return needed

    def generate(
        self,
        images: np.ndarray | None,
        prompts: Sequence[str],
        ids: np.ndarray,
        decoding: Decoding,
        forced: str = "",
        width: int | None = None,
    ) -> Answers:
        """Texts after a prompt a row. images [N,M,Y,X,C] uint8 or None; ids [N] choose the draws where there are any.

        forced: how every answer begins; it is part of the answer. width: pieces of prompt there is room for, by default
        those of the longest; a longer prompt loses its beginning. That, and answers ended by `max_length`, is noted.

        Raises:
          ValueError: no room for the answer, or likelihoods that are not finite.
        """
        able = self.needs("generation", "prefill", "extend")
        tokens, mask = self._prompts(prompts, width)
        room = self.vocabulary.length - tokens.shape[1]
        decoding = dataclasses.replace(decoding, max_length=decoding.max_length or room)
        start = tuple(self.tokenizer.encode(forced))
        if not 0 < decoding.max_length <= room:
            raise ValueError(
                f"max_length {decoding.max_length} does not fit: the prompt leaves room for {room} pieces of a text of "
                f"{self.vocabulary.length}"
            )

        def run(params, extra, batch):
            return generate(
                able, params, extra, batch, vocabulary=self.vocabulary, decoding=decoding, forced=start, seed=self.seed
            )

        rows = {"text": tokens, "text_mask": mask, "id": ids}
        if images is not None:
            rows["image"] = images
        tokens, scores = self.over(("generate", decoding, start, self.seed), run, rows)
        _finite(scores[:, 0])
        self.note("answers_cut", int((tokens[:, 0] != self.vocabulary.eos).all(1).sum()))
        return [
            [(self.tokenizer.decode(t), float(s)) for t, s in zip(hypotheses, row, strict=True) if np.isfinite(s)]
            for hypotheses, row in zip(tokens, scores, strict=True)
        ]

    def likelihoods(
        self,
        images: np.ndarray | None,
        prompts: Sequence[str],
        candidates: Sequence[str],
        shortlist: int = 0,
        width: int | None = None,
    ) -> np.ndarray:
        """Log-likelihood [N,K] (nats) of each of K candidate answers after a prompt a row."""
        able = self.needs("ranking", "prefill", "extend")
        tokens, mask = self._prompts(prompts, width)
        pieces = [[*self.tokenizer.encode(clean(c)), self.vocabulary.eos] for c in candidates]
        longest = max(map(len, pieces))
        if longest > self.vocabulary.length - tokens.shape[1]:
            raise ValueError(
                f"the longest answer is {longest} pieces, but a prompt of {tokens.shape[1]} leaves room for "
                f"{self.vocabulary.length - tokens.shape[1]}; train with a longer config.text.length"
            )
        table, real = pad_rows(pieces, longest, self.vocabulary.pad)

        def run(params, extra, batch):
            return likelihoods(able, params, extra, batch, table, real, shortlist)

        rows = {"text": tokens, "text_mask": mask}
        if images is not None:
            rows["image"] = images
        found = self.over(("likelihoods", tuple(candidates), shortlist), run, rows)
        _finite(found.max(1))
        return found

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Images [N,M,Y,X,C] uint8 in the shared space: [N,E], or what the model's `similarity` takes in its place."""
        embed = self.needs("embedding images", "embed_image")["embed_image"]
        return _finite_vectors(self.over("embed_image", embed, {"image": images}), "pictures")

    def vector_shape(self, side: int) -> tuple[int, ...]:
        """Shape of what `embed_images` gives a picture of `side` x `side` pixels: (E,), or with further axes before."""
        embed = self.needs("embedding images", "embed_image")["embed_image"]
        one = {"image": jax.ShapeDtypeStruct((1, 1, side, side, 3), np.uint8)}
        return jax.eval_shape(embed, self.params, self.extra, one).shape[1:]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts in the shared space: [N,E]. Those longer than the run's texts lose their end, which is noted."""
        embed = self.needs("embedding texts", "embed_text")["embed_text"]
        tokens, mask = self._whole_texts(texts)
        return _finite_vectors(self.over("embed_text", embed, {"text": tokens, "text_mask": mask}), "texts")

    def embed_pairs(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Features [N,D] of a text a row with its image, for probing."""
        features = self.needs("features of an image with a text", "pair_features")["pair_features"]
        tokens, mask = self._whole_texts(texts)
        return self.over("pair_features", features, {"image": images, "text": tokens, "text_mask": mask})

    def score_texts(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Log-likelihood [N] (nats) of a text a row, given its image; EOS included."""
        score = self.needs("the likelihood of texts", "score_text")["score_text"]
        tokens, mask = self._whole_texts(texts)
        rows = {"image": images, "text": tokens, "text_mask": mask, "prefix_length": np.zeros(len(tokens), np.int32)}
        found = self.over("score_text", score, rows)
        _finite(found)
        return found

    def similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """How alike embedded images [r,...] and embedded texts [c,E] are: [r,c], the higher the more."""
        similarity = self.needs("comparing images with texts", "similarity")["similarity"]
        name = (self.model, self.mesh, "similarity")
        if name not in self._compiled:
            whole = replicated(self.mesh)
            self._compiled[name] = jax.jit(
                with_layout(layout_of(self.mesh), similarity),
                in_shardings=(None, None, whole, whole),
                out_shardings=whole,
            )
        found = np.empty((len(images), len(texts)), np.float32)
        rows, columns = min(_BLOCK, len(images)), min(_BLOCK, len(texts))
        for i in range(0, len(images), rows):
            for j in range(0, len(texts), columns):
                block = filled(images[i : i + rows], rows), filled(texts[j : j + columns], columns)
                made = np.asarray(self._compiled[name](self.params, self.extra, *block))
                found[i : i + rows, j : j + columns] = made[: len(images) - i, : len(texts) - j]
        if wrong := int((~np.isfinite(found)).sum()):
            raise ValueError(f"{wrong} of {found.size} similarities are not finite; has the run diverged?")
        return found

    def matched(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """How alike each embedded image [n,...] and the embedded text [n,E] beside it are: [n]."""
        similarity = self.needs("comparing images with texts", "similarity")["similarity"]

        def one_by_one(params, extra, rows):
            return jax.vmap(lambda i, t: similarity(params, extra, i[None], t[None])[0, 0])(rows["image"], rows["text"])

        return self.over("matched", one_by_one, {"image": images, "text": texts})

    def logit_scale(self) -> float:
        """By what similarities are multiplied before a softmax: the model's own, learned factor."""
        scale = self.needs("probabilities of similarities", "logit_scale")["logit_scale"]
        return float(scale(self.params, self.extra))

    def note(self, what: str, count: int) -> None:
        """Adds to one of the counts in `notes`."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + int(count)

    def tell_cuts(self) -> None:
        """Says on stderr how many texts lost their end, if any did."""
        if cut := self.notes.get("texts_cut"):
            print(f"{cut} of the texts lost their end, at {self.vocabulary.length} pieces", file=sys.stderr)

    def room_before(self, answer: int) -> int:
        """Pieces left for a prompt when an answer of so many is to follow.

        Raises:
          ValueError: there are none, or the answer has no length of its own, which would then be the batch's to decide.
        """
        if answer < 1:
            raise ValueError(
                f"max_length {answer}: answers to questions need a length; set how.max_length, to 8 as a rule"
            )
        left = self.vocabulary.length - answer
        if left < 1:
            raise ValueError(
                f"an answer of {answer} pieces leaves no room for a question in a text of {self.vocabulary.length}; set "
                "max_length, or train with a longer config.text.length"
            )
        return left

    def longest(self, answers: Sequence[str]) -> int:
        """Pieces of the longest answer, EOS included."""
        return max(len(self.tokenizer.encode(clean(a))) + 1 for a in answers)

    def _whole_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pieces and EOS [N,T] and their mask, as in training."""
        v = self.vocabulary
        pieces = [[*self.tokenizer.encode(clean(t)), v.eos] for t in texts]
        self.note("texts_cut", sum(len(p) > v.length for p in pieces))
        return pad_rows(pieces, v.length, v.pad)

    def _prompts(self, prompts: Sequence[str], width: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Prompt pieces [N,width] and their mask."""
        pieces = [self.tokenizer.encode(clean(p)) for p in prompts]
        longest = max(map(len, pieces))
        if width is None and longest >= self.vocabulary.length:
            raise ValueError(
                f"a prompt of {longest} pieces leaves no room for an answer in a text of {self.vocabulary.length}"
            )
        width = longest if width is None else width
        self.note("prompts_cut", sum(len(p) > width for p in pieces))
        return pad_rows([p[len(p) - min(len(p), width) :] for p in pieces], width, self.vocabulary.pad)


def load_engine(path: str, step: int | None = None, batch_size: int = 64) -> tuple[Engine, Loaded]:
    """A run, ready to be asked, and what it was loaded from."""
    run = load_run(path, step)
    return Engine(run.model, run.tokenizer, run.mesh, run.params, run.extra, run.labels, batch_size=batch_size), run


def filled(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows: those there are, and copies of the last."""
    missing = count - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _finite_vectors(vectors: np.ndarray, what: str) -> np.ndarray:
    if wrong := int((~np.isfinite(vectors.reshape(len(vectors), -1)).all(1)).sum()):
        raise ValueError(f"{wrong} of {len(vectors)} {what} have vectors that are not finite; has the run diverged?")
    return vectors


def _finite(scores: np.ndarray) -> None:
    if wrong := int((~np.isfinite(scores)).sum()):
        raise ValueError(
            f"{wrong} of {len(scores)} answers have likelihoods that are not finite; has the run diverged?"
        )
