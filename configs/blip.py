"""BLIP (arXiv 2201.12086): one text transformer that reads, matches and writes.

    python -m simvlm_jax.main --config configs/blip.py
"""

from configs import parts
from simvlm_jax.core.build import spec

PAPER = {"base": (3e-4, 2880), "large": (2e-4, 2400)}  # learning rate and batch, section 4.1
SHARED = {"share_all": "all", "share_all_but_cross": "all_but_cross", "share_none": "none"}
VARIANTS = ("", "photos", "smoke", *PAPER, *SHARED)


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"blip has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    if variant in PAPER:
        return paper(variant)
    fields = {"sharing": SHARED[variant]} if variant in SHARED else {}
    config = parts.contrastive(model("tiny", scan=False, queue=4096, ramp=400, **fields), "" if variant in SHARED else variant)
    config.optimizer.bounds = TEMPERATURE
    size = config.data.get_ref("image_size")
    config.data.parts.pairs.transforms = transforms(size)
    captions = parts.captioning()
    if variant == "smoke":
        config.model.queue = 16
    else:
        config.data.parts.pairs.split = "train[:75%]"
        config.train.update(steps=1300, batch_size=64, accumulate=1)
        few = dict(test="test[:75%]", compositional="compositional[:75%]", many="test[75%:]")
        captions.update(path="scenes/captions", splits=few)
    config.eval.suites = dict(captions=captions, **config.eval.suites)
    return config


TEMPERATURE = (("temperature/value", (0.001, 0.5)),)


def transforms(image_size, **how):
    *rows, keep = parts.pair_transforms(image_size, **how)
    return (*rows, spec(f"{parts.TRANSFORMS}:DrawSeed"), parts.keep(*keep["keys"], "seed"))


def paper(size: str):
    rate, batch = PAPER[size]
    config = parts.web_pairs(model(size, remat="full"), 224)
    config.data.parts.pairs.transforms = transforms(config.data.get_ref("image_size"), smallest=0.5)
    config.text.update(vocabulary=30_522, length=29, spelling="lower")
    config.optimizer.update(learning_rate=rate, weight_decay=0.05, schedule="cosine", warmup=3000.0, bounds=TEMPERATURE)
    config.train.update(steps=20 * 14_000_000 // batch, batch_size=batch)
    config.model.ramp = 2 * 14_000_000 // batch
    config.eval.suites = dict(captions=parts.captioning(), **parts.contrastive_suites())
    return config


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of models/blip.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.models.blip:BLIP", size=size, compute=compute, **fields)
