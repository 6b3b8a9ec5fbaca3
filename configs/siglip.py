"""SigLIP (arXiv 2303.15343): does this text belong to this image? Every pair of the batch is asked alone.

    python -m simvlm_jax.main --config configs/siglip.py

trains a tiny SigLIP on the built-in scenes: in five and a half minutes on two cores it names 96 % of 56 classes it was never
trained to name, and finds the text of an image among 1,000 in 92 %. Variants: `photos` (real photographs, named by
--config.data.parts.pairs.path), `smoke`, the released models' sizes and recipe `B/16`, `L/16`, `So400m/14` (256 patches), each also
`@384` (a second stage), and the paper's other starts (table 4) on the built-in data: `no_bias`, `scale1` (t' = log 1), `bias0`
(b = 0), `bias0_scale1`.
"""

from configs import parts
from simvlm_jax.core.build import spec

PAPER = {"B/16": 256, "L/16": 256, "So400m/14": 224}
STARTS = {
    "no_bias": {"use_bias": False},
    "scale1": {"start_scale": 1.0},
    "bias0": {"start_bias": 0.0},
    "bias0_scale1": {"start_bias": 0.0, "start_scale": 1.0},
}

VARIANTS = ("", "photos", "smoke", *PAPER, *(f"{size}@384" for size in PAPER), *STARTS)


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant.removesuffix("@384") in PAPER:
        return paper(variant)
    if variant not in VARIANTS:
        raise ValueError(f"siglip has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    config = parts.contrastive(model("tiny", scan=False, **STARTS.get(variant, {})), variant)
    config.text.spelling = "plain"
    return config


def paper(variant: str):
    """Section 4 and the released models: 40B examples of 256 patches in batches of 32,768; Adafactor with b2 0.95, for 0.999 is
    unstable at that size; then 5B more at a higher resolution, with a hundredth of the learning rate and no weight decay.

    The first learning rate with its schedule and warm-up, the weight decay, the clipped gradient and the crops are not the
    paper's.
    """
    size, _, high = variant.partition("@")
    config = parts.web_pairs(model(size, remat="full"), int(high or PAPER[size]))
    config.mesh.fsdp = 1 if size == "B/16" else 8
    config.text.update(vocabulary=32_000, length=64, spelling="plain")
    config.optimizer.update(name="adafactor", learning_rate=1e-3, b1=0.9, b2=0.95, schedule="rsqrt", warmup=20_000.0)
    config.optimizer.weight_decay = 1e-4
    config.train.steps = 40_000_000_000 // 32_768
    if high:
        config.optimizer.update(learning_rate=1e-5, weight_decay=0.0)
        config.train.update(steps=5_000_000_000 // 32_768, init_from=(f"runs/siglip-{size.replace('/', '')}",))
    return config


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of models/siglip.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.models.siglip:SigLIP", size=size, compute=compute, **fields)
