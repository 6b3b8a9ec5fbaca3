"""How well a language model predicts texts: nats a piece, perplexity, and bits a byte, which compares models of other pieces."""

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.eval.metrics.bootstrap import ratio_of
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Examples, Item, Outcome, Suite, pictures_of
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity(Suite):
    """The likelihood of each text after its first piece, without an EOS. A longer text loses its beginning (noted `prompts_cut`).

    field: of an example, that holds its text. longest: pieces of a text that are read.
    """

    field: str = "text"
    longest: Positive = 512

    controls = ()

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def reads_images(self) -> bool:
        return False

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        width = min(self.longest, engine.vocabulary.length - 1)
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, _ in examples.chunks(engine.batch_size):
            texts = [str(row[self.field]) for row in rows]
            scores, noted = engine.score_prompts(texts, width)
            for example, text, score in zip(rows, texts, scores, strict=True):
                first, *scored = engine.tokenizer.ids_of(text)[-width:] or [engine.vocabulary.eos]
                said = engine.tokenizer.decode_after([first], scored).encode("utf-8", "surrogatepass")
                counted = {"pieces": len(scored), "bytes": len(said)}
                out.append(({**example, **counted}, Answer(text, float(score))))
            notes.update(noted)
        return Answered(out, notes)

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        scores = np.asarray([a.score for _, a in answered])
        pieces = np.asarray([e["pieces"] for e, _ in answered])
        size = np.asarray([e["bytes"] for e, _ in answered])
        nats = -scores.sum() / max(pieces.sum(), 1)
        found = {
            "nats_per_piece": float(nats),
            "perplexity": math.exp(min(nats, 700)),
            "bits_per_byte": float(-scores.sum() / math.log(2) / max(size.sum(), 1)),
        }
        items = [Item(e, a, badness=-a.score / max(e["pieces"], 1)) for e, a in answered]
        sums = {"nats_per_piece": ratio_of((-scores).tolist(), pieces.tolist())._replace(of=pictures_of(answered))}
        return Outcome(found, items, sums=sums)

    def decoding(self) -> dict[str, Any]:
        return {"field": self.field, "longest": self.longest}
