"""What configs share: sections with every field that the machine reads, at their defaults."""

import math

from ml_collections import ConfigDict, config_dict

from simvlm_jax.core.build import spec

TEMPERATURE = (("logit_scale/log", (0.0, math.log(100))),)
"""Bounds of the factor of cosines: 1 and 100 (CLIP, arXiv 2103.00020, section 2.5)."""
TRANSFORMS = "simvlm_jax.data.transforms"


def keep(*keys: str) -> ConfigDict:
    """The end of every list of transforms: the keys of a row."""
    return spec(f"{TRANSFORMS}:Keep", keys=keys)


def text_transforms(empty: float = 0.0, more: tuple[str, ...] = ()):
    """Text to ids, and the draws that objectives need (`empty`: share of prefixes that hold no text on purpose)."""
    prefix = spec(f"{TRANSFORMS}:DrawPrefix", empty=empty)
    rows = keep(*more, "text", "text_mask", "prefix_length", "seed")
    return (spec(f"{TRANSFORMS}:Tokenize"), prefix, spec(f"{TRANSFORMS}:DrawSeed"), rows)


def image_text_transforms(image_size, smallest: float = 1.0, mirror: float = 0.0, empty: float = 0.0):
    """Pixels first (see transforms.Pixels), then one caption as text."""
    pixels = spec(f"{TRANSFORMS}:Pixels", size=image_size, smallest=smallest, mirror=mirror)
    return (pixels, spec(f"{TRANSFORMS}:ChooseCaption"), *text_transforms(empty, ("image",)))


def decoding(**fields) -> ConfigDict:
    """How text is generated: see decode/decoding.py. Sampling is `sampler.temperature` and its companions."""
    return spec("simvlm_jax.decode.decoding:Decoding", sampler=spec("simvlm_jax.decode.sampling:Sampler"), **fields)


def captioning(prompt: str = "", **how) -> ConfigDict:
    """The captioning suite."""
    return spec("simvlm_jax.eval.captioning:Captioning", prompt=prompt, how=decoding(**how))


def packed_transforms(prefixes: bool = False):
    """The transforms of a part with packed=True: several texts per row, each a segment; `prefixes`: whether one of each is drawn."""
    keys = ("text", "text_mask", "target_mask", "segment", "position", *(["prefix_length"] if prefixes else []))
    drawn = [spec(f"{TRANSFORMS}:DrawPrefix")] if prefixes else []
    return (spec("simvlm_jax.data.packing:LayOutPacked"), *drawn, keep(*keys))


def pair_transforms(image_size, smallest: float = 1.0, mirror: float = 0.0):
    """Pixels first, then one caption as text: what contrastive models read."""
    pixels = spec(f"{TRANSFORMS}:Pixels", size=image_size, smallest=smallest, mirror=mirror)
    words = (spec(f"{TRANSFORMS}:ChooseCaption"), spec(f"{TRANSFORMS}:Tokenize"))
    return (pixels, *words, keep("image", "text", "text_mask"))


def zero_shot(**fields) -> ConfigDict:
    """Classification by names, on the built-in classes unless `path` says else."""
    where = {"path": "scenes/classes", "splits": {"test": "test"}}
    return spec("simvlm_jax.eval.zero_shot:ZeroShot", **{**where, **fields})


def retrieval(**fields) -> ConfigDict:
    """Texts of images and images of texts, over a whole set."""
    return spec("simvlm_jax.eval.retrieval:Retrieval", **fields)


def compositional() -> ConfigDict:
    """True captions against minimally wrong ones, on built-in scenes of one to three objects."""
    where = {"path": "scenes/captions", "splits": {"test": "test[:75%]"}}
    return spec("simvlm_jax.eval.compositional:Compositional", **where)


def part(path: str | None = None, rows: int | None = None, sources: dict | None = None, **fields) -> dict:
    """A part of the batches, of one path or several `sources` (see run/schema.py); rows: None for as many as train.batch_size."""
    number = config_dict.placeholder(int) if rows is None else rows
    where = dict(
        path=config_dict.placeholder(str) if path is None else path, split="train", columns="", truncated=False
    )
    fixed = dict(images=True, packed=False, chunked=True, transforms=(), cache=False)
    rest = dict(fixed, sources={k: source(**v) for k, v in (sources or {}).items()})
    return {**where, **rest, "rows": number, **fields}


def source(path: str, weight: float = 1.0, **fields) -> dict:
    """One of several sources of a part; its weight says how many of the part's rows are its own, against the others'."""
    return {**dict(path=path, split="train", columns="", truncated=False, weight=weight), **fields}


def base() -> ConfigDict:
    """An experiment without a model."""
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                image_size=64,
                whole=False,
                fit=dict(how="", side=0, filter="bicubic", fill=(0, 0, 0), rounding="down"),
                parts=dict(
                    pairs=part("scenes/captions"),
                    documents=part("scenes/text", rows=0, images=False, transforms=text_transforms()),
                ),
                eval=dict(
                    path=config_dict.placeholder(str),
                    split="validation",
                    columns="",
                    truncated=False,
                    splits=dict(test="test"),
                ),
                labels=dict(size=0, at_least=1),
                held_out=0.05,
                quarantine=0.05,
                threads=2,
            ),
            text=dict(model=config_dict.placeholder(str), vocabulary=320, length=0, corpus=10_000, spelling=""),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            hosts=dict(patience=60.0, late=30.0),
            optimizer=spec("simvlm_jax.train.optimizer:Optimizer"),
            train=dict(steps=1000, batch_size=64, accumulate=1, retries=2, trainable=(), init_from=()),
            eval=dict(every=0, examples=0, batch_size=100, suites=dict(captions=captioning())),
            checkpoint=dict(every=500, latest=2, keep_every=0, best=config_dict.placeholder(str)),
            log=dict(every=10),
        )
    )


def contrastive_suites() -> dict:
    """How contrastive models are examined on the built-in data."""
    return dict(zero_shot=zero_shot(), retrieval=retrieval(limit=1000), compositional=compositional())


def web_pairs(model: ConfigDict, image_size: int) -> ConfigDict:
    """Pairs from the web at a paper's scale: batches of 32,768, crops of 90 % of the area, all that is examined by default."""
    config = base()
    config.model = model
    config.data.image_size = image_size
    config.data.parts.pairs.transforms = pair_transforms(config.data.get_ref("image_size"), smallest=0.9)
    config.data.threads = 16
    config.text.corpus = 10_000_000
    config.train.batch_size = 32_768
    config.eval.suites = contrastive_suites()
    config.checkpoint.update(every=1000, latest=3, keep_every=50_000)
    config.log.every = 50
    return config


def contrastive(model: ConfigDict, variant: str = "") -> ConfigDict:
    """The built-in run of a contrastive model; `photos` on real photographs, `smoke` in seconds."""
    config = base()
    config.model = model
    size = config.data.get_ref("image_size")
    config.data.parts.pairs.transforms = pair_transforms(size)
    config.data.parts.pairs.update(split="train[:37%]", cache=True)  # scenes of one to three objects, of each as many
    config.data.eval.splits = dict(test="test", compositional="compositional")
    config.optimizer.update(name="muon", learning_rate=1e-2, b2=0.98, schedule="cosine", warmup=30.0)
    config.train.update(steps=220, batch_size=512, accumulate=4)
    config.eval.suites = contrastive_suites()
    config.checkpoint.every = 200
    if variant == "photos":
        config.data.image_size = 112
        config.data.parts.pairs.transforms = pair_transforms(size, smallest=0.5, mirror=0.5)
        config.data.parts.pairs.update(split="train", cache=False)
        config.text.update(vocabulary=4000, length=24)
        config.optimizer.weight_decay = 0.05
        config.train.update(steps=500, batch_size=256, accumulate=2)
        config.eval.every = 100
        config.eval.suites = dict(retrieval=retrieval())
    if variant == "smoke":
        config.data.parts.pairs.update(path="scenes/captions-80_8_32_16", cache=False)
        config.data.eval.splits = dict(test="test")
        config.data.image_size = 32
        config.text.length = 24
        config.optimizer.update(name="adamw", learning_rate=1e-3)
        config.train.update(steps=16, batch_size=8, accumulate=1)
        config.eval.update(batch_size=8, examples=8)
        config.eval.suites = dict(retrieval=retrieval())
        config.checkpoint.every = 4
        config.log.every = 1
    return config


def from_run(path: str) -> ConfigDict:
    """An experiment that goes on from the weights of a run, trained here or imported: its model, tokenizer and ways with pictures.

    What is left to say is the data: `data.parts.pairs` with its transforms, and how it is scored (`eval.suites`).
    """
    from simvlm_jax.run.directory import RunDir
    from simvlm_jax.run.load import recorded_config

    theirs, config = recorded_config(RunDir(path)), base()
    config.model = theirs.model
    config.data.whole = theirs.data.whole
    with config.data.ignore_type():
        size = theirs.data.image_size
        config.data.image_size = size if isinstance(size, int) else tuple(size)
    if theirs.data.fit is not None:
        config.data.fit = theirs.data.fit
    if theirs.get("text") is None:
        config.text = config_dict.placeholder(ConfigDict)
    else:
        config.text.length = theirs.text.length
    config.optimizer.update(learning_rate=1e-5, schedule="cosine", warmup=0.02, weight_decay=0.01)
    config.train.init_from = (path,)
    config.eval.suites = {}
    return config
