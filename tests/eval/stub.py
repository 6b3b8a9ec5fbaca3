"""Models that know the answer, or just do as they are told: evaluators must not be able to tell."""

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.types import BaseModel, Vocabulary
from simvlm_jax.parallel.mesh import make_mesh
from simvlm_jax.text.tokenizer import Tokenizer

TEXTS = ["yes", "no", "red", "blue", "a red dog", "a blue cat", "is it red?", "what colour?", "is there a blue thing?"]


def tokenizer(length: int = 24) -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 130, length)


class Stub(BaseModel):
    """`classify` says the class written in the first pixel; text is generated from a table by the first pixel.

    The likelihood of a text is uniform over pieces but for those the table names, which are e^4 times as likely.
    """

    def __init__(self, tokenizer: Tokenizer, classes: int = 0, says: tuple[str, ...] = ("yes",), able=None):
        self.vocabulary: Vocabulary = tokenizer.vocabulary
        self.classes, self.able = classes, able
        table = np.full((len(says), 12), self.vocabulary.eos, np.int32)
        for i, text in enumerate(says):
            ids = tokenizer.encode(text)
            table[i, : len(ids)] = ids
        self.table = jnp.asarray(table)

    def capabilities(self):
        every = {"prefill": self.prefill, "extend": self.extend, "classify": self.classify, "features": self.features}
        return {k: v for k, v in every.items() if self.able is None or k in self.able}

    def classify(self, params, extra, batch):
        first = batch["image"][:, 0, 0, 0, 0].astype(jnp.int32)
        return 5.0 * (first[:, None] == jnp.arange(self.classes))

    def features(self, params, extra, batch):
        return batch["image"][:, 0, 0, :3, 0].astype(jnp.float32) / 255

    def _logits(self, which, step):
        wanted = self.table[which % len(self.table), jnp.minimum(step, self.table.shape[1] - 1)]
        return 4.0 * (wanted[:, None] == jnp.arange(self.vocabulary.size))

    def prefill(self, params, extra, batch, max_length):
        which = batch["image"][:, 0, 0, 0, 0].astype(jnp.int32)
        step = jnp.zeros_like(which)
        return self._logits(which, step), {"which": which, "step": step}

    def extend(self, params, extra, cache, tokens):
        out = []
        step = cache["step"]
        for _ in range(tokens.shape[1]):
            step = step + 1
            out.append(self._logits(cache["which"], step))
        return jnp.stack(out, 1), {**cache, "step": step}


WORDS = ("red", "blue", "cat", "dog")


class Judge(BaseModel):
    """Knows the words that the first two pixels of an image name, and judges a text by them.

    `score_pair` is how many words the text shares with the image, less those that the image lacks; `score_text` the same, less
    a tenth of the text's pieces; `score_image` the same, with a draw from the rng of its row, `noise` wide.
    """

    def __init__(self, tokenizer: Tokenizer, noise: float = 0.0, able=None):
        self.pieces = [tokenizer.encode(w) for w in WORDS]
        self.noise, self.able = noise, able

    def capabilities(self):
        every = {"score_pair": self.score_pair, "score_text": self.score_text, "score_image": self.score_image}
        return {k: v for k, v in every.items() if self.able is None or k in self.able}

    def seen(self, batch):
        """Words [B,W] of images."""
        return (batch["image"][:, 0, 0, :2, 0].astype(jnp.int32)[..., None] == jnp.arange(len(WORDS))).any(1)

    def named(self, batch):
        """Words [B,W] of texts."""
        found = []
        for pieces in self.pieces:
            hits = jnp.stack([jnp.roll(batch["text"], -k, axis=1) == p for k, p in enumerate(pieces)]).all(0)
            found.append(hits.any(1))
        return jnp.stack(found, 1)

    def score_pair(self, params, extra, batch):
        seen, named = self.seen(batch), self.named(batch)
        return (named & seen).sum(1).astype(jnp.float32) - (named & ~seen).sum(1)

    def score_text(self, params, extra, batch):
        return self.score_pair(params, extra, batch) - 0.1 * batch["text_mask"].sum(1)

    def score_image(self, params, extra, batch, rng):
        return self.score_pair(params, extra, batch) + self.noise * jax.vmap(jax.random.normal)(rng)


class ListSource:
    """Examples from a list; `first` is the value of the first pixel."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def key(self, index):
        return f"row-{index}"

    def __repr__(self):
        return "rows"

    def __getitem__(self, index):
        row = dict(self.rows[index])
        pixels = np.zeros((8, 8, 3), np.uint8)
        first = np.atleast_1d(row.pop("first"))
        pixels[0, : len(first), 0] = first
        return {"key": self.key(index), "image": pixels, **row}


def engine(model, tok, labels=(), batch_size=4, devices=None):
    from simvlm_jax.infer.engine import Engine

    return Engine(model, tok, make_mesh(devices), {}, {}, tuple(labels), batch_size)
