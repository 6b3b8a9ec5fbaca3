"""SimVLM (arXiv 2108.10904): prefix language modelling over images and text.

    python -m simvlm_jax.main --config configs/prefixlm.py

trains a tiny SimVLM on the built-in scenes with one to three objects. Variants: `photos` (real photographs, named by
--config.data.parts.pairs.path), `base`, `large`, `huge` (the paper's sizes and recipe), `smoke` (16 steps on a handful of scenes,
to try a machine or a launcher in seconds), and the paper's ablations on the built-in data: `decoder_only`, `lm`, `span`,
`patches`, `stem2`, `stem4`, `with_text` (8 documents a batch), `packed` (as many rows, of about four documents each). `base_t5` is
`base` whose text stacks and embedding begin as those of an imported T5 (`simvlm import t5-base --family t5 --out runs/t5-base`).
"""

from configs import parts
from simvlm_jax.core.build import spec

ABLATIONS = {
    "decoder_only": {"decoder_only": True},
    "lm": {"objective": "lm"},
    "span": {"objective": "span_corruption"},
    "patches": {"stem_stages": 0},
    "stem2": {"stem_stages": 2},
    "stem4": {"stem_stages": 4},
}

VARIANTS = ("", "photos", "smoke", "base", "large", "huge", "base_t5", *ABLATIONS, "with_text", "packed")


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant in ("base", "large", "huge"):
        return paper(variant)
    if variant == "base_t5":
        return from_t5(paper("base"), "runs/t5-base", width=768, head=64)
    if variant == "photos":
        return photos()
    if variant == "smoke":
        return smoke()
    if variant not in VARIANTS:
        raise ValueError(f"prefixlm has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    config = parts.base()
    config.model = model("tiny", scan=False, **ABLATIONS.get(variant, {}))
    config.data.parts.pairs.transforms = parts.image_text_transforms(config.data.get_ref("image_size"), empty=0.9)
    config.data.parts.pairs.update(split="train[:75%]", cache=True)  # scenes of one to three objects
    config.data.eval.splits = dict(test="test[:75%]", compositional="compositional[:75%]", many="test[75%:]")
    config.data.parts.documents.rows = 8 if variant in ("with_text", "packed") else 0
    if variant == "packed":
        config.data.parts.documents.update(packed=True, transforms=parts.packed_transforms(prefixes=True))
    config.optimizer.update(name="muon", learning_rate=1e-2, b2=0.98, schedule="cosine", warmup=30.0)
    config.train.update(steps=750, batch_size=64)
    config.checkpoint.every = 200
    return config


def smoke():
    """The built-in run, shrunken until a process takes seconds."""
    config = get_config()
    config.data.parts.pairs.update(path="scenes/captions-80_8_32_16", split="train", cache=False)
    config.data.eval.splits = dict(test="test")
    config.data.image_size = 32
    config.text.length = 24
    config.optimizer.update(name="adamw", learning_rate=1e-3)
    config.train.update(steps=16, batch_size=8)
    config.eval.update(batch_size=8, examples=8)
    config.checkpoint.every = 4
    config.log.every = 1
    return config


def photos():
    """Real photographs at 112 px on a small machine: crops and mirror images, 4k pieces from the run's own captions."""
    config = parts.base()
    config.model = model("tiny", scan=False, dropout=0.1)
    config.data.image_size = 112
    size = config.data.get_ref("image_size")
    config.data.parts.pairs.transforms = parts.image_text_transforms(size, smallest=0.5, mirror=0.5, empty=0.75)
    config.text.update(vocabulary=4000, length=24)
    config.optimizer.update(name="muon", learning_rate=1e-2, b2=0.98, warmup=100.0, weight_decay=0.05)
    config.train.update(steps=4000, batch_size=64)
    config.eval.every = 500
    config.checkpoint.every = 250
    return config


def paper(size: str):
    """Section 4.1: 4,096 image-text pairs and 512 documents a batch, AdamW, linear decay; 224 px, 32k pieces."""
    config = parts.base()
    config.model = model(size, remat="full")
    config.data.image_size = 224
    config.data.parts.pairs.transforms = parts.image_text_transforms(config.data.get_ref("image_size"), smallest=0.5)
    config.data.parts.documents.rows = 512
    config.data.threads = 16
    config.mesh.fsdp = 8
    config.text.update(vocabulary=32_000, length=256, corpus=10_000_000)
    config.optimizer.update(learning_rate=5e-4, b1=0.9, b2=0.999, schedule="linear", warmup=0.02, weight_decay=0.01)
    config.train.update(steps=1_000_000, batch_size=4096)
    config.checkpoint.update(every=1000, latest=3, keep_every=50_000)
    config.log.every = 50
    return config


def from_t5(config, run: str, width: int, head: int):
    """Takes a T5's stacks and embedding (arXiv 1910.10683): relative positions stay behind, what its norms and maps lack begins anew.

    Its logits of attention are not divided by the root of the head width, so queries are multiplied by it; its embedding has unit
    variance, where ours is multiplied by the root of the width.
    """
    left = ("_relative/", "^softmax", "/gate$")
    scale = (("attention/query$", head**0.5), ("^embedding$", width**-0.5))
    config.train.init_from = ({"run": run, "map": tuple((pattern, None) for pattern in left), "scale": scale},)
    return config


def model(size: str, scan: bool = True, remat: str = "none", **fields):
    """The network of a size; `fields` are those of models/simvlm.py."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec("simvlm_jax.models.simvlm:SimVLM", size=size, compute=compute, **fields)
