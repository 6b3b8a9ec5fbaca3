"""Retrieval over a whole set: which text belongs to an image, and which image to a text (recall at 1, 5 and 10).

COCO's and Flickr30k's protocol: images with five captions each. Image to text is right when any of an image's captions is
among the first K; text to image asks for each caption's one image. The whole set is ranked at once, so that scores of sets of
unlike size do not compare; chance stands beside them. A tie is lost.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Count
from simvlm_jax.core.trust import buildable
from simvlm_jax.eval.metrics.bootstrap import mean_of, ratio_of
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Example, Examples, Item, Outcome, Suite
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine

RECALLS = (1, 5, 10)


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Suite):
    """captions: of each image that are used, the first ones; 0 for all.

    rerank: how many of the most similar texts of an image, and images of a text, are ranked again by `score_pair`, where the
    model looks at an image and a text together (ALBEF, arXiv 2107.07651, section 3.4); 0 for none. The others stay behind them.
    The recalls are then those after it, and `similarity_image_to_text_r1` and the like those before.
    """

    captions: Count = 5
    rerank: Count = 16

    fields = ("captions",)
    controls: tuple[str, ...] = ("blind",)

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        engine.require("retrieval", "embed_image", "embed_text", "similarity")
        rows: list[Example] = []
        found = []
        for part, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            rows += part
            found.append(engine.embed_images(images))
        texts = [self._texts(e) for e in rows]
        flat = [t for own in texts for t in own]
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in texts])
        embedded, notes = engine.embed_texts(flat)
        alike = engine.similarity(np.concatenate(found), embedded)
        of_images = of_texts = alike
        if self.rerank and engine.has("score_pair"):
            of_images, of_texts = self._reranked(engine, examples, alike, flat)
            notes = {**notes, "rerank": self.rerank}
        before, after = ranks(alike, owner), (ranks(of_images, owner)[0], ranks(of_texts, owner)[1])
        out: AnsweredExamples = []
        for i, example in enumerate(rows):
            best = tuple((flat[j], float(alike[i, j])) for j in np.argsort(-of_images[i], kind="stable")[:3])
            place = [{"to_text": int(t[i]), "to_image": c[owner == i].tolist()} for t, c in (after, before)]
            found = {"ranks": place[0], **({} if of_images is alike else {"ranks_before": place[1]})}
            out.append(({**example, **found}, Answer(*best[0], best)))
        return Answered(out, notes)

    def _reranked(
        self, engine: Engine, examples: Examples, alike: np.ndarray, texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores [r,c] to rank texts of an image by, and those to rank images of a text by; each pair is scored once."""
        of_images, of_texts = (np.zeros(alike.shape, bool) for _ in range(2))
        k = min(self.rerank, len(texts)), min(self.rerank, len(alike))
        np.put_along_axis(of_images, np.argsort(-alike, axis=1, kind="stable")[:, : k[0]], True, axis=1)
        np.put_along_axis(of_texts, np.argsort(-alike, axis=0, kind="stable")[: k[1]], True, axis=0)
        matching, start = np.zeros(alike.shape, np.float32), 0
        for part, images in examples.chunks(engine.batch_size):  # read again: pictures of a whole set are not held
            assert images is not None
            rows = slice(start, start + len(part))
            pairs = np.argwhere(of_images[rows] | of_texts[rows])
            if len(pairs):
                matching[rows][tuple(pairs.T)] = engine.score_pair(images, texts, pairs).values
            start += len(part)
        return in_front(alike, matching, of_images), in_front(alike, matching, of_texts)

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        to_text = np.asarray([e["ranks"]["to_text"] for e, _ in answered])
        to_image = np.concatenate([e["ranks"]["to_image"] for e, _ in answered])
        scores = {
            **{f"image_to_text_r{k}": float((to_text < k).mean()) for k in RECALLS},
            **{f"text_to_image_r{k}": float((to_image < k).mean()) for k in RECALLS},
            **{f"chance_r{k}": min(k / len(answered), 1.0) for k in RECALLS},
        }
        if "ranks_before" in answered[0][0]:
            seen = [e["ranks_before"] for e, _ in answered]
            first, second = np.asarray([r["to_text"] for r in seen]), np.concatenate([r["to_image"] for r in seen])
            scores |= {f"similarity_image_to_text_r{k}": float((first < k).mean()) for k in RECALLS}
            scores |= {f"similarity_text_to_image_r{k}": float((second < k).mean()) for k in RECALLS}
        own = np.asarray([len(e["ranks"]["to_image"]) for e, _ in answered])
        if own.max() > 1:  # with several texts an image, one of k is an image's own a little more seldom than k of N
            scores |= {f"image_to_text_chance_r{k}": float(_hit_by_chance(own, k).mean()) for k in RECALLS[1:]}
        items = [
            Item(
                e,
                a,
                truth=tuple(self._texts(e)),
                right=e["ranks"]["to_text"] == 0,
                badness=float(e["ranks"]["to_text"]),
            )
            for e, a in answered
        ]
        sums = {f"image_to_text_r{k}": mean_of(to_text < k) for k in RECALLS}
        each = [np.asarray(e["ranks"]["to_image"]) for e, _ in answered]  # a text is drawn with its image
        sums |= {f"text_to_image_r{k}": ratio_of([(r < k).sum() for r in each], own) for k in RECALLS}
        return Outcome(scores, items, sums=sums)

    def _texts(self, example: Example) -> list[str]:
        return list(example["captions"])[: self.captions or None]

    def decoding(self) -> dict[str, Any]:
        return {"captions_an_image": self.captions or "all"}


def _hit_by_chance(own: np.ndarray, k: int) -> np.ndarray:
    """The probability that k texts drawn of all hold one of an image's `own` ones."""
    rest = own.sum() - own
    drawn = np.arange(k)[:, None]
    return 1 - np.prod(np.maximum(rest - drawn, 0) / np.maximum(own.sum() - drawn, 1), axis=0)


def in_front(alike: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`alike` [r,c] in fp64, but for the `chosen` pairs, which come before all others in the order of `scores` [r,c]."""
    if not chosen.any():
        return alike.astype(np.float64)
    first = alike.max() + 1.0 + scores.astype(np.float64) - scores[chosen].min()
    return np.where(chosen, first, alike.astype(np.float64))


def ranks(alike: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many texts of others come before an image's best one [r], and how many other images before a text's own [c].

    alike: similarities [r,c]. owner: the image [c] of each text.
    """
    if not np.isfinite(alike).all():
        raise ValueError("similarities that are not finite cannot be ranked; has the run diverged?")
    own = owner[None] == np.arange(len(alike))[:, None]
    best = np.where(own, alike, -np.inf).max(1)
    to_text = ((alike >= best[:, None]) & ~own).sum(1)
    mine = alike[owner, np.arange(len(owner))]
    to_image = (alike >= mine[None]).sum(0) - 1
    return to_text, to_image
