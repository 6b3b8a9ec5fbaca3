"""Captioning: one caption an image, scored against references and, where there is one, the scene graph.

COCO's protocol scores the whole set at once; NoCaps' adds its domains (Agrawal et al., ICCV 2019): "overall" is over all
images, not the mean of the three. Here every slice uses the document frequencies of the whole set, so that slices compare.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.trust import buildable
from simvlm_jax.data.scenes import graph, judge
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.metrics.bootstrap import ratio_of
from simvlm_jax.eval.metrics.caption import CiderD, caption_sums
from simvlm_jax.eval.metrics.ptb import ptb_tokenize
from simvlm_jax.eval.suite import (
    Answer,
    AnsweredExamples,
    Example,
    Examples,
    Item,
    Outcome,
    Suite,
    draw_ids,
    pictures_of,
)
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine

DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioning(Suite):
    """Captions by generation; with a `prompt` such as "a picture of" the zero-shot protocol of SimVLM, section 4.2.

    prompt: text read as a prefix, of which the continuation is the caption. forced: how the decoder begins to write; it is
    part of the caption.
    """

    prompt: str = ""
    forced: str = ""
    how: Decoding = Decoding()

    fields = ("image", "captions")

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            made, noted = engine.generate(images, [self.prompt] * len(rows), draw_ids(rows), self.how, self.forced)
            for example, hypotheses in zip(rows, made, strict=True):
                out.append((example, Answer(*hypotheses[0], tuple(hypotheses))))
            notes.update(noted)
        return Answered(out, notes)

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        captions, references = [a.text for _, a in answered], [e["captions"] for e, _ in answered]
        scores, sums = caption_sums(captions, references)
        each = sums["cider"].rows[:, 0].tolist()
        scenes = [Scene.from_json(e["scene"]) if "scene" in e else None for e, _ in answered]
        known = [(s, c) for s, c in zip(scenes, captions, strict=True) if s is not None]
        if known:
            scores = {**judge.scores(*map(list, zip(*known, strict=True))), **scores}
            pairs = judge.counts(*map(list, zip(*known, strict=True)))
            sums |= {name: ratio_of(*zip(*rows, strict=True)) for name, rows in pairs.items()}
        pictures = pictures_of(answered)
        known_pictures = [p for p, s in zip(pictures, scenes, strict=True) if s is not None]
        sums = {k: s._replace(of=known_pictures if len(s.rows) < len(pictures) else pictures) for k, s in sums.items()}
        scores |= _by_domain([domain_of(e) for e, _ in answered], each)
        items = []
        for (example, answer), scene, cider in zip(answered, scenes, each, strict=True):
            verdict = judge.judge(scene, answer.text) if scene else None
            wrong = verdict.total - verdict.true if verdict else 0
            items.append(
                Item(
                    example,
                    answer,
                    truth=tuple(example["captions"]),
                    right=verdict.accurate if verdict else None,
                    badness=0.0 if verdict and verdict.accurate else wrong + 1 / (1 + cider),
                    claims=tuple(verdict.claims) if verdict else (),
                )
            )
        return Outcome({k: v for k, v in scores.items() if np.isfinite(v)}, items, sums=sums)

    def constant(
        self, engine: Engine, answered: AnsweredExamples, texts: Callable[[], Sequence[str]]
    ) -> AnsweredExamples:
        """The one caption of the training data that scores the best CIDEr-D when said of every image."""
        if all("scene" in e for e, _ in answered):  # a scene's caption is never right of another
            return []
        candidates = texts()
        if not candidates:
            return []
        cider = CiderD([[ptb_tokenize(r) for r in e["captions"]] for e, _ in answered])
        best = max(candidates, key=lambda c: cider.constant(ptb_tokenize(c)))
        return [(example, Answer(best)) for example, _ in answered]

    def decoding(self) -> dict[str, Any]:
        how = dataclasses.asdict(self.how)
        return {"prompt": self.prompt, "forced": self.forced, **how, "cider_frequencies": "of the evaluated set"}


def domain_of(example: Example) -> str | None:
    """in, near or out: as the data says, or by how many of a scene's (colour, shape) pairs training never shows."""
    if "domain" in example:
        return DOMAINS.get(example["domain"], example["domain"])
    if "scene" not in example:
        return None
    unseen = [(o.colour, o.shape) in graph.HELD_OUT for o in Scene.from_json(example["scene"]).objects]
    return "out" if all(unseen) else "near" if any(unseen) else "in"


def _by_domain(domains: list[str | None], cider: list[float]) -> dict[str, float]:
    """Mean CIDEr-D of every domain, where there are several."""
    found = sorted({d for d in domains if d})
    if len(found) < 2:
        return {}
    return {f"cider_{d}": float(np.mean([c for c, at in zip(cider, domains, strict=True) if at == d])) for d in found}
