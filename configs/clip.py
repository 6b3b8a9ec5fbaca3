"""CLIP (arXiv 2103.00020): which texts belong to which images, by a softmax over the batch.

    python -m simvlm_jax.main --config configs/clip.py

trains a tiny CLIP on the built-in scenes: in five and a half minutes on two cores it names 93 % of 56 classes it was never
trained to name, and finds the text of an image among 1,000 in 91 %. Variants: `photos` (real photographs, named by
--config.data.parts.pairs.path), `smoke`, and the paper's sizes and recipe: `B/32`, `B/16`, `L/14`, `L/14@336` (one more epoch at 336
px), `RN50`, `RN101`, `RN50x4`, `RN50x16`, `RN50x64`.
"""

from configs import parts
from simvlm_jax.core.build import spec

PAPER = {  # learning rate, pixels (tables 19 and 20)
    "B/32": (5e-4, 224),
    "B/16": (5e-4, 224),
    "L/14": (4e-4, 224),
    "RN50": (5e-4, 224),
    "RN101": (5e-4, 224),
    "RN50x4": (5e-4, 288),
    "RN50x16": (4e-4, 384),
    "RN50x64": (3.6e-4, 448),
}

VARIANTS = ("", "photos", "smoke", *PAPER, "L/14@336")


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"clip has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    if variant.partition("@")[0] in PAPER:
        return paper(variant)
    config = parts.contrastive(model("tiny", scan=False), variant)
    config.optimizer.bounds = parts.TEMPERATURE
    return config


def paper(variant: str):
    """Section 2.5 and appendix F: 32 epochs of 400M pairs, batches of 32,768, random square crops.

    The paper decays all weights but gains and biases; position tables are not decayed here either.
    """
    size, _, high = variant.partition("@")
    rate, pixels = PAPER[size]
    config = parts.web_pairs(model(size, remat="full"), int(high or pixels))
    config.text.update(vocabulary=49_408, length=76, spelling="lower")
    b2, epsilon = (0.999, 1e-8) if size.startswith("RN") else (0.98, 1e-6)
    config.optimizer.update(learning_rate=rate, b1=0.9, b2=b2, epsilon=epsilon, schedule="cosine", warmup=2000.0)
    config.optimizer.update(weight_decay=0.2, clip=None, bounds=parts.TEMPERATURE)
    config.train.steps = 32 * 400_000_000 // 32_768
    if high:
        config.optimizer.learning_rate = 2e-5
        config.train.update(steps=400_000_000 // 32_768, init_from=("runs/clip-L14",))
    return config


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of models/clip.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.models.clip:CLIP", size=size, compute=compute, **fields)
