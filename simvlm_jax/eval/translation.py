"""Image-conditioned translation: the source text is read as a prefix beside the image, the target is generated."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from simvlm_jax.core.trust import buildable
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.metrics.bootstrap import Sums, mean_of
from simvlm_jax.eval.metrics.translation import bleu_counts, bleu_of, corpus_bleu
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Examples, Item, Outcome, Suite, draw_ids, pictures_of
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine
from simvlm_jax.infer.prompts import prompt_width


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(Suite):
    """Corpus BLEU (0 to 100), and `exact`, the share of translations that are the reference word for word.

    source, reference: fields of an example.
    """

    source: str = "source"
    reference: str = "target"
    how: Decoding = Decoding(max_length=32)

    controls: tuple[str, ...] = ("blind",)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.source, self.reference)

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        width = prompt_width(engine.vocabulary, self.how.max_length)
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            sources = [str(e[self.source]) for e in rows]
            made, noted = engine.generate(images, sources, draw_ids(rows), self.how, width=width)
            out += [(e, Answer(*best[0], tuple(best))) for e, best in zip(rows, made, strict=True)]
            notes.update(noted)
        return Answered(out, notes)

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        outputs = [a.text for _, a in answered]
        truth = [str(e[self.reference]) for e, _ in answered]
        items = [
            Item(e, a, str(e[self.source]), (t,), a.text == t, float(1 - corpus_bleu([a.text], [t], smooth=True) / 100))
            for (e, a), t in zip(answered, truth, strict=True)
        ]
        of = pictures_of(answered)
        exact = mean_of([s == t for s, t in zip(outputs, truth, strict=True)], of)
        rows = np.asarray([bleu_counts(s, t) for s, t in zip(outputs, truth, strict=True)], float)
        sums = {"bleu": Sums(rows, lambda sums: bleu_of(sums.tolist()), of), "exact": exact}
        return Outcome(
            {"bleu": corpus_bleu(outputs, truth), "exact": float(np.mean(exact.rows[:, 0]))}, items, sums=sums
        )

    def decoding(self) -> dict[str, Any]:
        return {"prompt": f"{{{self.source}}}", **dataclasses.asdict(self.how)}
