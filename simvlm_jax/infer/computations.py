"""What is compiled: pure functions of weights, rows and arrays, each equal to every other that computes the same."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Model, Rows, Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import Generated, check_lengths, continue_prompts
from simvlm_jax.decode.rank import likelihoods
from simvlm_jax.infer.programs import PrefillAndSteps


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Reads prompts, with room for `max_length` more pieces: (logits [B,V], cache)."""

    model: Model
    max_length: int

    def __call__(self, params: Any, extra: Any, batch: Rows) -> tuple[jax.Array, Any]:
        return self.model.capabilities()["prefill"](params, extra, batch, self.max_length)


@dataclasses.dataclass(frozen=True)
class Continue:
    """Continues prompts that were read: `decode.generate.continue_prompts`; the seed is traced."""

    model: Model
    vocabulary: Vocabulary
    decoding: Decoding
    forced: tuple[int, ...]

    def __call__(
        self, params: Any, extra: Any, ids: jax.Array, read: tuple[jax.Array, Any], seed: jax.Array
    ) -> Generated:
        return continue_prompts(
            self.model.capabilities(),
            params,
            extra,
            *read,
            ids,
            vocabulary=self.vocabulary,
            decoding=self.decoding,
            forced=self.forced,
            seed=seed,
        )


def generation(model: Model, vocabulary: Vocabulary, decoding: Decoding, forced: tuple[int, ...]) -> PrefillAndSteps:
    """Continues prompts, as `decode.generate.generate` does. forced: ids that every answer begins with."""
    check_lengths(decoding, forced)
    return PrefillAndSteps(Prefill(model, decoding.max_length), Continue(model, vocabulary, decoding, forced))


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Log-likelihoods [B,K] of candidate answers [K,T] with their mask [K,T]: `decode.rank`; the candidates are traced."""

    model: Model
    shortlist: int

    def __call__(self, params: Any, extra: Any, batch: Rows, candidates: jax.Array, mask: jax.Array) -> jax.Array:
        able = self.model.capabilities()
        return likelihoods(able, params, extra, batch, candidates, mask, self.shortlist)


@dataclasses.dataclass(frozen=True)
class SimilarityOfRows:
    """Similarity [B] of each embedded image with the embedded text beside it."""

    model: Model

    def __call__(self, params: Any, extra: Any, batch: Rows) -> jax.Array:
        similarity = self.model.capabilities()["similarity"]

        def one(image, text):
            return similarity(params, extra, image[None], text[None])[0, 0]

        return jax.vmap(one)(batch["image"], batch["text"])


@dataclasses.dataclass(frozen=True)
class ScoreImage:
    """Mean [B] of `samples` Monte-Carlo estimates of log p(image | text); a row draws from `seed` and its id alone."""

    model: Model
    samples: int

    def __call__(self, params: Any, extra: Any, batch: Rows, seed: jax.Array) -> jax.Array:
        score_image = self.model.capabilities()["score_image"]
        rows = {k: v for k, v in batch.items() if k != "id"}
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch["id"].astype(jnp.uint32))

        def estimate(sample):
            return score_image(params, extra, rows, jax.vmap(jax.random.fold_in, (0, None))(keys, sample))

        return jax.lax.map(estimate, jnp.arange(self.samples)).mean(0)


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The `top` most similar of a block of vectors for each query: (scores [Q,top], places [Q,top])."""

    model: Model
    top: int

    def __call__(
        self, params: Any, extra: Any, vectors: jax.Array, queries: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """count: of the vectors [N,...] that are there; those after it are padding."""
        alike = self.model.capabilities()["similarity"](params, extra, vectors, queries).T
        there = jnp.arange(vectors.shape[0]) < count
        scores, places = jax.lax.top_k(jnp.where(there, alike, -jnp.inf), self.top)
        return scores, places
