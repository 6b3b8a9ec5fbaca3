"""A model with weights that answers: every capability over any number of rows, padded to one compiled size.

Results are numpy arrays and texts on every process. They never depend on the batch size: a row's answer is its own.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from simvlm_jax.core.schema import Seed, check
from simvlm_jax.core.types import Model, Rows, Vocabulary, sides_of
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.infer.answered import Answered, Notes, counts
from simvlm_jax.infer.computations import Likelihoods, ScoreImage, SimilarityOfRows, generation
from simvlm_jax.infer.programs import Array, Capability, Computation, Gathered, Programs, padded, place_whole
from simvlm_jax.infer.prompts import candidate_table, prompt_rows, text_rows
from simvlm_jax.infer.requests import Request, rows_of_requests
from simvlm_jax.parallel.mesh import row_shards
from simvlm_jax.run.load import Loaded, load_run
from simvlm_jax.text.tokenizer import NoTokenizer, Tokenizer

Hypotheses = list[tuple[str, float]]
"""Generated texts of a row with their scores, the best first."""

BLOCK = 256
"""Images and texts that are compared at once: a model may mix an image's tokens for every pair."""

MOST_ROWS = 2**16
"""Most rows of a compiled call."""


class MissingCapability(ValueError):
    """The model lacks a capability that a call needs."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model with its weights, tokenizer and answer list.

    batch_size: most rows of a compiled call, rounded up to a multiple of the mesh. Results never depend on it. seed: of
    sampled texts and Monte-Carlo scores. Images are [N,M,Y,X,C] uint8.
    """

    model: Model
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    params: Any = None
    extra: Any = None
    labels: tuple[str, ...] = ()
    batch_size: int = 100
    seed: int = 0
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False)

    def __post_init__(self):
        if not 1 <= self.batch_size <= MOST_ROWS:
            raise ValueError(f"batch_size {self.batch_size} must be between 1 and {MOST_ROWS:,}")
        check(self.seed, Seed, "seed")
        shards = row_shards(self.mesh)
        object.__setattr__(self, "batch_size", -(-self.batch_size // shards) * shards)

    def with_weights(self, params: Any, extra: Any) -> "Engine":
        """The same engine with other weights; compiled functions are kept."""
        return dataclasses.replace(self, params=params, extra=extra)

    @property
    def vocabulary(self) -> Vocabulary:
        """Size, special ids and text length of the tokenizer."""
        return self.tokenizer.vocabulary

    # ---- capabilities and batches --------------------------------------------------------------------------------

    def has(self, *names: str) -> bool:
        """Whether the model has all of these capabilities."""
        return set(names) <= set(self.model.capabilities())

    def require(self, purpose: str, *names: str) -> dict[str, Callable]:
        """The model's capabilities by name.

        Raises:
          MissingCapability: one of `names` is not among them.
        """
        able = self.model.capabilities()
        if missing := [name for name in names if name not in able]:
            raise MissingCapability(f"{purpose} needs {', '.join(missing)}, which {type(self.model).__name__} lacks")
        return able

    def apply(self, purpose: str, name: str, rows: Rows) -> Any:
        """Outputs [N,...] of the capability `name` over rows [N,...].

        Raises:
          MissingCapability: the model lacks it; `purpose` begins the message.
        """
        self.require(purpose, name)
        return self.over(Capability(self.model, name), rows)

    def over(self, function: Computation, rows: Rows, *whole: Array) -> Any:
        """Outputs [N,...] of `function(params, extra, batch, *whole)` over rows [N,...]; see `Programs.over`."""
        return self.programs.over(self.mesh, function, self.params, self.extra, rows, whole, self.batch_size)

    @functools.cached_property
    def decoding_params(self) -> Any:
        """The parameters as decoding reads them fastest, laid out once for these weights; see `decode.generate`."""
        if not self.has("decoding_params"):
            return self.params
        lay_out = self.programs.compiled(self.mesh, Capability(self.model, "decoding_params"), whole=False)
        return lay_out(self.params, self.extra)

    def _decoded(self, function: Computation, rows: Rows, *whole: Array) -> Any:
        """As `over`, with the parameters that are laid out for decoding."""
        return self.programs.over(self.mesh, function, self.decoding_params, self.extra, rows, whole, self.batch_size)

    # ---- writing -------------------------------------------------------------------------------------------------

    def generate(
        self,
        images: np.ndarray | None,
        prompts: Sequence[str],
        ids: np.ndarray,
        decoding: Decoding,
        forced: str = "",
        width: int | None = None,
        seed: int | None = None,
        joined: bool = False,
    ) -> Answered[list[Hypotheses]]:
        """Continues the prompt of each row; ids [N] choose a row's draws where there are any.

        forced: how every answer begins; it is part of the answer. width: pieces of prompt there is room for, by default
        those of the longest; a longer prompt loses its beginning (note `prompts_cut`). seed: of the draws, by default the
        engine's. joined: answers begin with the space that they need after their prompt. Answers that `max_length` ended are
        noted (`answers_cut`).

        Raises:
          ValueError: no room for the answer, or likelihoods that are not finite.
        """
        rows, notes = prompt_rows(self.tokenizer, prompts, width)
        return self._generated(_with_images(rows, images), notes, ids, decoding, forced, seed, joined)

    def complete(
        self,
        requests: Sequence[Request],
        ids: np.ndarray,
        decoding: Decoding,
        forced: str = "",
        width: int | None = None,
        seed: int | None = None,
    ) -> Answered[list[Hypotheses]]:
        """Continues requests, lists of texts and images; see `requests` for what a model takes, and `generate` for the rest.

        Raises:
          ValueError: as `generate`; and where the model cannot take the parts of a request.
        """
        able = self.require("generation", "prefill", "extend")
        tokens = int(able["image_tokens"](self.params, self.extra)) if "image_tokens" in able else None
        groups = rows_of_requests(requests, self.tokenizer, type(self.model).__name__, tokens, width)
        texts: list[Hypotheses] = [[] for _ in requests]
        notes: Counter[str] = Counter()
        for places, rows, noted in groups:
            made, noted = self._generated(rows, noted, np.asarray(ids)[places], decoding, forced, seed)
            notes.update(noted)
            for place, hypotheses in zip(places, made, strict=True):
                texts[place] = hypotheses
        return Answered(texts, notes)

    def _generated(
        self,
        rows: Rows,
        notes: Notes,
        ids: np.ndarray,
        decoding: Decoding,
        forced: str,
        seed: int | None,
        joined: bool = False,
    ) -> Answered[list[Hypotheses]]:
        self.require("generation", "prefill", "extend")
        room = self.vocabulary.length - rows["text"].shape[1]
        decoding = dataclasses.replace(decoding, max_length=decoding.max_length or room)
        if not 0 < decoding.max_length <= room:
            raise ValueError(
                f"max_length {decoding.max_length} does not fit: the prompt leaves room for {room} pieces of a text of "
                f"{self.vocabulary.length}"
            )
        start = tuple(self.tokenizer.encode(forced))
        function = generation(self.model, self.vocabulary, decoding, start)
        drawn = np.uint32(self.seed if seed is None else seed)
        tokens, scores = self._decoded(function, {**rows, "id": np.asarray(ids, np.int64)}, drawn)
        _check_likelihoods(scores[:, 0])
        before = [row[m].tolist() if joined else [] for row, m in zip(rows["text"], rows["text_mask"], strict=True)]
        texts = [
            [(self.tokenizer.decode_after(b, t), float(s)) for t, s in zip(each, row, strict=True) if np.isfinite(s)]
            for b, each, row in zip(before, tokens, scores, strict=True)
        ]
        cut = (tokens[:, 0] != self.vocabulary.eos).all(1).sum()
        return Answered(texts, {**notes, **counts(answers_cut=cut)})

    def likelihoods(
        self,
        images: np.ndarray | None,
        prompts: Sequence[str],
        candidates: Sequence[str],
        shortlist: int = 0,
        width: int | None = None,
    ) -> Answered[np.ndarray]:
        """Log-likelihood [N,K] (nats) of each of K candidate answers after the prompt of each row.

        shortlist: see decode.rank. width: as in `generate`.
        """
        self.require("ranking", "prefill", "extend")
        rows, notes = prompt_rows(self.tokenizer, prompts, width)
        room = self.vocabulary.length - rows["text"].shape[1]
        table = candidate_table(self.tokenizer, candidates, room)
        scores = self._decoded(Likelihoods(self.model, shortlist), _with_images(rows, images), *table)
        _check_likelihoods(scores.max(1))
        return Answered(scores, notes)

    @property
    def reads(self) -> bool:
        """Whether the run has a tokenizer."""
        return not isinstance(self.tokenizer, NoTokenizer)

    def chat_of(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as the text that the model continues; see Tokenizer.chat_of. Without a BOS that the model puts first itself.

        Raises:
          ValueError: there is no template of chats, it refuses the messages, or the tokenizer has no pieces for its marks.
        """
        text, v = self.tokenizer.chat_of(messages), self.vocabulary
        bos, eos = self.tokenizer.pieces([v.bos, v.eos])
        if getattr(getattr(self.model, "sizes", None), "begins", False):
            text = text.removeprefix(bos)
        if not self.tokenizer.is_json and (mark := next((m for m in (bos, eos) if m in text), None)):
            raise ValueError(
                f"the template of chats writes {mark!r} within the text, which sentencepiece reads as letters; import the "
                "weights again with --tokenizer and their tokenizer.json"
            )
        return text

    def score_prompts(self, prompts: Sequence[str], width: int | None = None) -> Answered[np.ndarray]:
        """Log-likelihood [N] (nats) of each text after its first piece, without an EOS; texts and width as in `generate`."""
        rows, notes = prompt_rows(self.tokenizer, prompts, width)
        if not rows["text"].shape[1]:
            return Answered(np.zeros(len(prompts), np.float32), notes)
        first = np.ones(len(prompts), np.int32)
        found = self.apply("the likelihood of texts", "score_text", {**rows, "prefix_length": first})
        _check_likelihoods(found)
        return Answered(found, notes)

    # ---- the shared space ----------------------------------------------------------------------------------------

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embeds images in the shared space: [N,E], or what the model's `similarity` takes in its place."""
        return _check_vectors(self.apply("embedding images", "embed_image", {"image": images}), "pictures")

    def vector_shape(self, size: Any) -> tuple[int, ...]:
        """Shape of what `embed_images` gives a picture of so many pixels: (E,), or with further axes before."""
        embed = self.require("embedding images", "embed_image")["embed_image"]
        one = {"image": jax.ShapeDtypeStruct((1, 1, *sides_of(size), 3), np.uint8)}
        return jax.eval_shape(embed, self.params, self.extra, one).shape[1:]

    def embed_texts(self, texts: Sequence[str]) -> Answered[np.ndarray]:
        """Embeds texts in the shared space: [N,E]. Those longer than the run's texts lose their end (note `texts_cut`)."""
        rows, notes = text_rows(self.tokenizer, texts)
        return Answered(_check_vectors(self.apply("embedding texts", "embed_text", rows), "texts"), notes)

    def similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Similarities [r,c] fp32 of embedded images [r,...] and embedded texts [c,E], the higher the more alike."""
        self.require("comparing images with texts", "similarity")
        program = self.programs.compiled(self.mesh, Capability(self.model, "similarity"))
        found = np.empty((len(images), len(texts)), np.float32)
        rows, columns = min(BLOCK, len(images)), min(BLOCK, len(texts))
        for i in range(0, len(images), rows):
            for j in range(0, len(texts), columns):
                block = padded(images[i : i + rows], rows), padded(texts[j : j + columns], columns)
                made = np.asarray(program(self.params, self.extra, *(place_whole(self.mesh, x) for x in block)))
                found[i : i + rows, j : j + columns] = made[: len(images) - i, : len(texts) - j]
        if wrong := int((~np.isfinite(found)).sum()):
            raise ValueError(f"{wrong} of {found.size} similarities are not finite; has the run diverged?")
        return found

    def similarity_of_rows(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Similarity [N] of each embedded image [N,...] with the embedded text [N,E] beside it."""
        self.require("comparing images with texts", "similarity")
        return self.over(SimilarityOfRows(self.model), {"image": images, "text": texts})

    def logit_scale(self) -> float:
        """Factor on similarities before a softmax: the model's own, learned one."""
        scale = self.require("probabilities of similarities", "logit_scale")["logit_scale"]
        return float(scale(self.params, self.extra))

    # ---- images with texts ---------------------------------------------------------------------------------------

    def pair_features(self, images: np.ndarray, texts: Sequence[str]) -> Answered[np.ndarray]:
        """Features [N,D] of each image with the text beside it, for probing."""
        return self._scored("features of an image with a text", "pair_features", images, texts, None)

    def score_text(
        self, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray | None = None
    ) -> Answered[np.ndarray]:
        """Log-likelihood [P] (nats) of a text given its image, EOS included.

        pairs: [P,2] numbers of an image and of a text; by default each image with the text beside it.
        """
        found = self._scored("the likelihood of texts", "score_text", images, texts, pairs)
        _check_likelihoods(found.values)
        return found

    def score_pair(
        self, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray | None = None
    ) -> Answered[np.ndarray]:
        """Logit [P] that a text matches its image, by a model that looks at both (ALBEF, arXiv 2107.07651, section 3.2).

        pairs: as in `score_text`.
        """
        found = self._scored("matching images with texts", "score_pair", images, texts, pairs)
        if wrong := int((~np.isfinite(found.values)).sum()):
            raise ValueError(f"{wrong} of {len(found.values)} matching scores are not finite; has the run diverged?")
        return found

    def score_image(
        self,
        images: np.ndarray,
        texts: Sequence[str],
        ids: np.ndarray,
        pairs: np.ndarray | None = None,
        samples: int = 1,
    ) -> Answered[np.ndarray]:
        """Log-likelihood [P] (nats), or a bound of it, of an image given a text, as the mean of `samples` Monte-Carlo estimates.

        ids: [N], of each image; they choose its draws, which are the same for all of its texts, so that differences between
        texts are less noisy than scores (Li et al., arXiv 2303.16203, section 3.3). pairs: as in `score_text`.
        """
        self.require("the likelihood of images", "score_image")
        rows, notes = self._paired(images, texts, pairs)
        which = np.arange(len(images)) if pairs is None else pairs[:, 0]
        rows["id"] = np.asarray(ids, np.int64)[which]
        found = self.over(ScoreImage(self.model, samples), rows, np.uint32(self.seed))
        _check_likelihoods(found)
        return Answered(found, notes)

    def _scored(
        self, purpose: str, name: str, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray | None
    ) -> Answered[np.ndarray]:
        self.require(purpose, name)
        rows, notes = self._paired(images, texts, pairs)
        if (
            pairs is not None and name == "score_pair" and self.has("image_states")
        ):  # an image of many pairs is encoded once
            which = np.unique(pairs[:, 0], return_inverse=True)
            states = self.apply(purpose, "image_states", {"image": images[which[0]]})
            del rows["image"]
            rows["image_states"] = Gathered(states, which[1])
        return Answered(self.over(Capability(self.model, name), rows), notes)

    def _paired(self, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray | None) -> Answered[dict[str, Any]]:
        """Rows of images with whole texts; a text that stands in several pairs is tokenized and noted once."""
        rows, notes = text_rows(self.tokenizer, texts)
        rows["prefix_length"] = np.zeros(len(texts), np.int32)
        if pairs is None and len(images) != len(texts):
            raise ValueError(f"{len(images)} images with {len(texts)} texts; give as many, or name their pairs")
        if pairs is None:
            return Answered({"image": images, **rows}, notes)
        return Answered({"image": Gathered(images, pairs[:, 0]), **{k: v[pairs[:, 1]] for k, v in rows.items()}}, notes)


def load_engine(path: str, step: int | None = None, batch_size: int = 64) -> tuple[Engine, Loaded]:
    """(engine of a run, what it was loaded from). step: a checkpoint's; by default the best, or the newest."""
    run = load_run(path, step)
    return Engine(run.model, run.tokenizer, run.mesh, run.params, run.extra, run.labels, batch_size=batch_size), run


def _with_images(rows: Rows, images: np.ndarray | None) -> Rows:
    return rows if images is None else {**rows, "image": images}


def _check_vectors(vectors: np.ndarray, what: str) -> np.ndarray:
    if wrong := int((~np.isfinite(vectors.reshape(len(vectors), -1)).all(1)).sum()):
        raise ValueError(f"{wrong} of {len(vectors)} {what} have vectors that are not finite; has the run diverged?")
    return vectors


def _check_likelihoods(scores: np.ndarray) -> None:
    if wrong := int((~np.isfinite(scores)).sum()):
        raise ValueError(
            f"{wrong} of {len(scores)} answers have likelihoods that are not finite; has the run diverged?"
        )
