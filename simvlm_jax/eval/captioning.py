"""Captioning: generate one caption an image and score it against references and, where there is one, the scene graph."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from simvlm_jax.core.types import Model
from simvlm_jax.data.images import decode, resize
from simvlm_jax.data.pipeline import TooManyBadExamples
from simvlm_jax.data.scenes import judge
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.data.sources import Source
from simvlm_jax.data.transforms import BadExample
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.eval.metrics.caption import CiderD, caption_scores
from simvlm_jax.eval.metrics.ptb import ptb_tokenize
from simvlm_jax.parallel.mesh import place_batch, replicated
from simvlm_jax.text.tokenizer import Tokenizer


class MissingCapability(ValueError):
    """The model cannot do what an evaluator needs."""


@dataclasses.dataclass(frozen=True)
class Captioner:
    """Captions for pixels, by any model that has `prefill` and `extend`; compiled once for a batch size, which is
    rounded up to a multiple of the mesh.

    max_length: pieces after the prompt, EOS included; 0 for as many as the model's text length leaves.
    """

    model: Model
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    batch_size: int = 100
    prompt: str = ""
    max_length: int = 0
    sampler: Sampler = Sampler()
    seed: int = 0

    def __post_init__(self):
        capabilities = self.model.capabilities()
        if missing := [name for name in ("prefill", "extend") if name not in capabilities]:
            raise MissingCapability(f"captioning needs {', '.join(missing)}, which {type(self.model).__name__} lacks")
        vocabulary = self.tokenizer.vocabulary
        prompt = self.tokenizer.encode(self.prompt)
        room = vocabulary.length - len(prompt)
        if room < 1:
            raise ValueError(f"the prompt {self.prompt!r} is {len(prompt)} pieces, the text length {vocabulary.length}")
        length = self.max_length or room
        if length > room:
            raise ValueError(f"max_length {length} does not fit: the prompt leaves room for {room} pieces")

        def run(params, extra, batch):
            return generate(
                capabilities,
                params,
                extra,
                batch,
                vocabulary=vocabulary,
                max_length=length,
                sampler=self.sampler,
                seed=self.seed,
            )

        devices = self.mesh.size  # a batch's rows must divide over them
        object.__setattr__(self, "batch_size", -(-self.batch_size // devices) * devices)
        object.__setattr__(self, "_prompt", np.asarray(prompt, np.int32))
        object.__setattr__(self, "_run", jax.jit(run, out_shardings=replicated(self.mesh)))

    def __call__(self, params: Any, extra: Any, images: np.ndarray, ids: np.ndarray) -> list[str]:
        """Captions of uint8 images [N,1,Y,X,C], prompt included; N is padded to a multiple of the batch size."""
        captions: list[str] = []
        for start in range(0, len(images), self.batch_size):
            rows = images[start : start + self.batch_size]
            short = self.batch_size - len(rows)
            pad = lambda x, n=short: np.concatenate([x, np.repeat(x[-1:], n, axis=0)]) if n else x  # noqa: E731
            prompt = np.broadcast_to(self._prompt, (self.batch_size, len(self._prompt)))
            batch = {
                "image": pad(rows),
                "text": prompt,
                "text_mask": np.ones(prompt.shape, bool),
                "id": pad(ids[start : start + self.batch_size]),
            }
            tokens, _ = self._run(params, extra, place_batch(self.mesh, batch))
            for row in np.asarray(tokens)[: len(rows)]:
                captions.append(self.tokenizer.decode([*self._prompt, *row]))
        return captions


@dataclasses.dataclass(frozen=True)
class Sample:
    """One judged image, for the page."""

    key: str
    pixels: np.ndarray
    caption: str
    references: list[str]
    verdict: judge.Verdict | None


@dataclasses.dataclass(frozen=True)
class CaptionSuite:
    """A set of images with references; examples that cannot be read or have none are left out.

    limit: evaluate only so many of an even spread (0: all). bad: share of examples that may be left out. record: gets a
    row for each of them.
    """

    split: str
    source: Source
    image_size: int
    limit: int = 0
    bad: float = 0.05
    record: Callable[[dict[str, Any]], None] | None = None

    def __post_init__(self):
        n = len(self.source)
        count = min(self.limit, n) if self.limit else n
        object.__setattr__(self, "_indices", [i * n // count for i in range(count)])

    def load(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(pixels [N,1,Y,X,C], examples) of the good ones.

        Raises:
          TooManyBadExamples: more than the limit are bad.
        """
        pixels, examples, wrong = [], [], []
        for i in self._indices:
            try:
                example = dict(self.source[i])
                if not example.get("captions"):
                    raise BadExample("the example has no caption")
                image = decode(example.pop("image"), at_least=self.image_size)
                pixels.append(resize(image, self.image_size)[None])
                examples.append(example)
            except Exception as e:  # as in the pipeline: people's files fail in any way they like
                key = self.source.key(i)
                wrong.append(f"{key!r}: {e}")
                if self.record is not None:
                    self.record({"part": self.split, "key": key, "error": f"{type(e).__name__}: {e}"})
        if not pixels or len(wrong) > self.bad * len(self._indices):
            raise TooManyBadExamples(
                f"{len(wrong)} of {len(self._indices)} examples of {self.split!r} are bad, over the limit of "
                f"{self.bad:.1%}; the last was {wrong[-1]}. Mend the data or raise config.data.quarantine."
            )
        return np.stack(pixels), examples

    def run(
        self, captioner: Captioner, params: Any, extra: Any, blind: bool = False
    ) -> tuple[dict[str, float], list[Sample]]:
        """(scores, samples). `blind` zeroes every image: what the model says without looking."""
        pixels, examples = self.load()
        seen = np.zeros_like(pixels) if blind else pixels
        captions = captioner(params, extra, seen, np.arange(len(seen), dtype=np.int64))
        references = [e["captions"] for e in examples]
        scores = caption_scores(captions, references)
        scenes = [Scene.from_json(e["scene"]) if "scene" in e else None for e in examples]
        known = [(s, c) for s, c in zip(scenes, captions, strict=True) if s is not None]
        if known:
            scores = {**judge.scores(*map(list, zip(*known, strict=True))), **scores}
        samples = [
            Sample(e["key"], p[0], c, r, judge.judge(s, c) if s else None)
            for e, p, c, r, s in zip(examples, pixels, captions, references, scenes, strict=True)
        ]
        return scores, samples


def best_constant(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The candidate caption that scores the best CIDEr-D when said of every image, and its scores."""
    cider = CiderD([[ptb_tokenize(r) for r in refs] for refs in references])
    best = max(candidates, key=lambda c: cider.constant(ptb_tokenize(c)))
    return best, caption_scores([best] * len(references), references)
