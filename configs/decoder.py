"""Decoders of text (GPT-2, LLaMA, SmolLM2, Qwen2, ...; families/decoders.py): each piece from those before it.

    python -m simvlm_jax.main --config configs/decoder.py

trains a tiny LLaMA-shaped decoder on the built-in documents, about scenes that nobody sees: in a minute on two cores. Variants:
`packed` (several documents a row), `smoke`, and released sizes to train anew or to fine-tune: `gpt2`, `opt-125m`, `smollm2-135m`,
`qwen2-0.5b`. `simvlm import` and `simvlm fetch` make runs of released weights, from which `train.init_from` starts.
"""

from configs import parts
from simvlm_jax.core.build import spec

RELEASED = {
    "gpt2": (50_257, 1024),
    "opt-125m": (50_272, 2047),
    "smollm2-135m": (49_152, 2048),
    "qwen2-0.5b": (151_936, 2048),
}
"""Pieces, and the length of a text."""

VARIANTS = ("", "packed", "smoke", *RELEASED)


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"decoder has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    if variant in RELEASED:
        return released(variant)
    config = parts.base()
    config.model = model("tiny", scan=False)
    config.data.parts.pairs.update(path="scenes/text", images=False, transforms=texts())
    config.optimizer.update(name="muon", learning_rate=1e-2, b2=0.98, schedule="cosine", warmup=30.0)
    config.train.update(steps=300, batch_size=64)
    config.eval.suites = dict(perplexity=spec("simvlm_jax.eval.perplexity:Perplexity"))
    config.checkpoint.every = 100
    if variant == "packed":
        config.data.parts.pairs.update(packed=True, transforms=parts.packed_transforms())
    if variant == "smoke":
        config.data.parts.pairs.path = "scenes/text-80_8_32_16"
        config.text.length = 24
        config.optimizer.update(name="adamw", learning_rate=1e-3)
        config.train.update(steps=16, batch_size=8)
        config.eval.update(batch_size=8, examples=8)
        config.checkpoint.every = 4
        config.log.every = 1
    return config


def released(size: str):
    """A released size on packed documents: 0.5M pieces a batch, AdamW, as small language models are trained."""
    config = parts.base()
    config.model = model(size, remat="full")
    config.data.parts.pairs.update(path="scenes/text", images=False, packed=True, transforms=parts.packed_transforms())
    pieces, length = RELEASED[size]
    config.text.update(vocabulary=pieces, length=length, corpus=1_000_000, spelling="exact")
    config.optimizer.update(
        learning_rate=6e-4, b1=0.9, b2=0.95, schedule="cosine", warmup=2000.0, weight_decay=0.1, clip=1.0
    )
    config.train.update(steps=100_000, batch_size=2**19 // (length + 1) // 8 * 8)
    config.eval.suites = dict(perplexity=spec("simvlm_jax.eval.perplexity:Perplexity"))
    config.checkpoint.update(every=1000, latest=3)
    config.log.every = 50
    return config


def texts():
    """A text a row, all of it predicted."""
    return (spec(f"{parts.TRANSFORMS}:Tokenize"), parts.keep("text", "text_mask"))


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of families/decoders.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.families.decoders:Decoder", size=size, compute=compute, **fields)
