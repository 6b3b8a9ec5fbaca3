"""BLIP (arXiv 2201.12086): one text transformer that reads, matches and writes.

    python -m simvlm_jax.main --config configs/blip.py

trains a tiny BLIP on the built-in scenes, and says how well it finds texts by similarity and again by matching.

Variants: `photos` (real photographs, named by --config.data.parts.pairs.path), `smoke`, the paper's sizes and recipe `base` and
`large`, and on the built-in data its sharing ablation (table 3) `share_all`, `share_all_but_cross`, `share_none`.

Tasks go on from runs/blip (another run by --config.train.init_from): `captions` (prompted, its prompt not learned), `retrieval`
(texts of one image are all its own), `vqa` (answers written and ranked), `nlvr` (a sentence about two images); each with `-base` or
`-large` after it as in the paper (section 4), from runs/blip-base or runs/blip-large.
"""

from configs import parts
from simvlm_jax.core.build import spec

PAPER = {"base": (3e-4, 2880), "large": (2e-4, 2400)}  # learning rate and batch, section 4.1
SHARED = {"share_all": "all", "share_all_but_cross": "all_but_cross", "share_none": "none"}
RATES = {"captions": (1e-5, 2e-6), "retrieval": (1e-5, 5e-6), "vqa": (2e-5, 2e-5), "nlvr": (3e-5, 3e-5)}
"""Learning rates of the tasks, of base and large (appendix C)."""
VARIANTS = ("", "photos", "smoke", *PAPER, *SHARED, *(f"{t}{s}" for s in ("", "-base", "-large") for t in RATES))
PAIRS, LENGTH = 14_000_000, 24
ANSWERING = "simvlm_jax.eval.answering"
TEMPERATURE = (("temperature/divisor", (0.001, 0.5)),)
PROMPT = "a picture of"


def get_config(variant: str = ""):
    """The built-in run, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"blip has no variant {variant!r}; it has {', '.join(VARIANTS[1:])}")
    name, _, size = variant.partition("-")
    if name in RATES:
        return task(name, size)
    return paper(variant) if variant in PAPER else tiny(variant)


def tiny(variant: str):
    """The built-in model and data, minutes on two cores.

    Captions and matching weigh 20 times the contrast, which else holds so small a model back; the temperature is bounded as CLIP's.
    Of scenes with few objects many captions of others are true as well: negatives are bounded by `below`.
    """
    fields = {"sharing": SHARED[variant]} if variant in SHARED else {}
    fields |= dict(matching_weight=20.0, caption_weight=20.0, queue=4096, ramp=400, queued_texts=True, below=0.95)
    config = parts.contrastive(model("tiny", scan=False, **fields), "" if variant in SHARED else variant)
    config.optimizer.bounds = (("temperature/divisor", (0.01, 0.5)),)
    crop = dict(smallest=0.5, mirror=0.5) if variant == "photos" else {}
    config.data.parts.pairs.transforms = transforms(config.data.get_ref("image_size"), **crop)
    suites = {"captions": parts.captioning(), **config.eval.suites}
    if variant == "smoke":
        config.model.queue = 16
    elif variant != "photos":
        config.text.update(length=LENGTH, vocabulary=384)
        config.data.parts.pairs.split = "train[:75%]"
        config.train.update(steps=600, batch_size=64, accumulate=1)
        few = dict(test="test[:75%]", compositional="compositional[:75%]")
        suites["captions"].update(path="scenes/captions", splits=few)
    config.eval.suites = suites
    return config


def paper(size: str):
    """Section 4.1: 20 epochs of 14M pairs, AdamW, decay 0.05, 3,000 steps of warm-up; 30 positions, 224 px.

    The paper's rate falls by 0.85 an epoch and its code's by 0.9; a cosine ends where these do. The crops are our choice.
    """
    rate, batch = PAPER[size]
    drops = dict(dropout=0.1, drop_path=0.1 if size == "large" else 0.0)
    config = parts.web_pairs(model(size, remat="full", ramp=2 * PAIRS // batch, **drops), 224)
    config.data.parts.pairs.transforms = transforms(config.data.get_ref("image_size"), smallest=0.5)
    config.text.update(vocabulary=30_522, length=29, spelling="lower")
    config.optimizer.update(learning_rate=rate, schedule="cosine", warmup=3000.0, weight_decay=0.05, bounds=TEMPERATURE)
    config.train.update(steps=20 * PAIRS // batch, batch_size=batch)
    config.eval.suites = dict(captions=parts.captioning(), **parts.contrastive_suites())
    return config


def task(name: str, size: str):
    """A task from a pre-trained run; of a size, section 4 and appendix C: 384 px, batches of 256, a cosine without warm-up."""
    config = parts.base()
    how = dict(size="tiny", scan=False)
    if size:
        path = 0.1 if size == "large" or name in ("vqa", "nlvr") else 0.0
        how = dict(size=size, remat="full", dropout=0.1, drop_path=path)
        config.text.length = dict(captions=39, retrieval=34, vqa=44).get(name, 34)
        config.data.update(image_size=384, threads=16)
        config.optimizer.update(learning_rate=RATES[name][size == "large"], schedule="cosine", weight_decay=0.05)
        config.train.batch_size = 256
    else:
        config.text.length = 32
        config.optimizer.update(name="muon", learning_rate=4e-3, b2=0.98, schedule="cosine", warmup=20.0)
        config.train.update(steps=300, batch_size=64)
    config.train.init_from = ({"run": f"runs/blip{'-' * bool(size)}{size}", "map": (("^extra/", None),)},)
    TASKS[name](config, how)
    return config


def captions(config, how):
    """Section 4.2: captions after a prompt that is given, five epochs of COCO; beam search of 3, 5 to 20 pieces."""
    config.model = model(**how, contrastive_weight=0.0, matching_weight=0.0)
    pair = spec(f"{parts.TRANSFORMS}:TokenizePair", prompt="prompt", answer="text")
    words = (spec(f"{parts.TRANSFORMS}:ChooseCaption"), spec(f"{parts.TRANSFORMS}:Prompt", text=PROMPT), pair)
    rows(config, words, ("prefix_length",), 11_000)
    if how["size"] == "tiny":
        config.data.parts.pairs.split, config.data.eval.splits = "train[:75%]", dict(test="test[:75%]")
    config.eval.suites = dict(captions=parts.captioning(PROMPT, beams=3, max_length=20, min_length=5))


def retrieval(config, how):
    """Section 4.1: six epochs of COCO, texts of one image all its own; the 256 most similar ranked again."""
    small = how["size"] == "tiny"
    memory = dict(queue=4096, ramp=100, queued_texts=True, below=0.95) if small else dict(ramp=2214)
    config.model = model(**how, **memory, caption_weight=0.0, same_image=True)
    words = (spec(f"{parts.TRANSFORMS}:ChooseCaption"), spec(f"{parts.TRANSFORMS}:Tokenize"))
    rows(config, (*words, spec(f"{parts.TRANSFORMS}:DrawSeed")), ("seed",), 13_300)
    config.optimizer.bounds = TEMPERATURE
    if small:
        config.data.parts.pairs.split, config.data.eval.splits = "train[:75%]", dict(test="test[:75%]")
    config.eval.suites = dict(
        retrieval=parts.retrieval(rerank=64 if small else 256), compositional=parts.compositional()
    )


def vqa(config, how):
    """Section 4.4: the encoder reads the question, the decoder writes the answer; ten epochs of VQA's 658,000 questions, 480 px."""
    config.model = model(**how, contrastive_weight=0.0, matching_weight=0.0, question=True, sharing="none")
    rows(config, (spec(f"{parts.TRANSFORMS}:TokenizePair"),), ("prefix_length",), 25_700, "scenes/vqa")
    config.data.labels.size = 3128
    if how["size"] != "tiny":
        config.data.image_size = 480
    written = spec(f"{ANSWERING}:Generation", how=parts.decoding(max_length=10, beams=3))
    config.eval.suites = dict(generate=written, rank=spec(f"{ANSWERING}:Ranking", shortlist=128))


def nlvr(config, how):
    """Section 4.4: is a sentence about two images true? Two cross-attentions a layer, merged; fifteen epochs of NLVR2."""
    config.model = model(**how, images=2, of="blip_nlvr:BLIPPairs")
    words = spec(f"{parts.TRANSFORMS}:Tokenize", field="sentence")
    rows(config, (words, spec(f"{parts.TRANSFORMS}:Label")), ("label",), 5_060, "scenes/pairs")
    config.data.labels.size = 2
    shown = (words, parts.keep("image", "text", "text_mask"))
    config.eval.suites = dict(classify=spec(f"{ANSWERING}:Classification", question="sentence", transforms=shown))


TASKS = {f.__name__: f for f in (captions, retrieval, vqa, nlvr)}


def rows(config, words: tuple, kept: tuple, steps: int, path: str = "scenes/captions"):
    """The data of a task: pictures, words, what is kept of them; steps: of a paper's size."""
    pixels = spec(f"{parts.TRANSFORMS}:Pixels", size=config.data.get_ref("image_size"))
    made = (pixels, *words, parts.keep("image", "text", "text_mask", *kept))
    config.data.parts.pairs.update(path=path, transforms=made)
    if config.model.size != "tiny":
        config.train.steps = steps


def transforms(image_size, **crop):
    """Pixels, one caption, and the seed that hard negatives are drawn by."""
    *rows, keep = parts.pair_transforms(image_size, **crop)
    return (*rows, spec(f"{parts.TRANSFORMS}:DrawSeed"), parts.keep(*keep["keys"], "seed"))


def model(size: str, scan: bool = True, remat: str = "none", of: str = "blip:BLIP", **fields):
    """The network of a size; `fields` are those of models/blip.py, or of another model of the paper."""
    compute = spec("simvlm_jax.nn.sizes:Compute", dtype="auto", remat=remat, scan=scan)
    return spec(f"simvlm_jax.models.{of}", size=size, compute=compute, **fields)
