"""Retrieval over a whole set: which text belongs to an image, and which image to a text (recall at 1, 5 and 10).

COCO's and Flickr30k's protocol: images with five captions each. Image to text is right when any of an image's captions is
among the first K; text to image asks for each caption's one image. The whole set is ranked at once, so that scores of sets of
unlike size do not compare; chance stands beside them. A tie is lost.
"""

import dataclasses
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Count
from simvlm_jax.core.trust import buildable
from simvlm_jax.eval.metrics.bootstrap import mean_of, ratio_of
from simvlm_jax.eval.suite import Answer, Answered, Example, Examples, Item, Outcome, Suite
from simvlm_jax.infer.engine import Engine

RECALLS = (1, 5, 10)


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Suite):
    """captions: of each image that are used, the first ones; 0 for all."""

    captions: Count = 5

    fields = ("image", "captions")
    controls: tuple[str, ...] = ("blind",)

    def answers(self, engine: Engine, examples: Examples) -> Answered:
        engine.needs("retrieval", "embed_image", "embed_text", "similarity")
        rows: list[Example] = []
        found = []
        for part, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            rows += part
            found.append(engine.embed_images(images))
        texts = [self._texts(e) for e in rows]
        flat = [t for own in texts for t in own]
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in texts])
        alike = engine.similarity(np.concatenate(found), engine.embed_texts(flat))
        to_text, to_image = ranks(alike, owner)
        out: Answered = []
        for i, example in enumerate(rows):
            best = tuple((flat[j], float(alike[i, j])) for j in np.argsort(-alike[i], kind="stable")[:3])
            place = {"to_text": int(to_text[i]), "to_image": to_image[owner == i].tolist()}
            out.append(({**example, "ranks": place}, Answer(*best[0], best)))
        return out

    def outcome(self, engine: Engine, answered: Answered) -> Outcome:
        to_text = np.asarray([e["ranks"]["to_text"] for e, _ in answered])
        to_image = np.concatenate([e["ranks"]["to_image"] for e, _ in answered])
        scores = {
            **{f"image_to_text_r{k}": float((to_text < k).mean()) for k in RECALLS},
            **{f"text_to_image_r{k}": float((to_image < k).mean()) for k in RECALLS},
            **{f"chance_r{k}": min(k / len(answered), 1.0) for k in RECALLS},
        }
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
