"""SimVLM (arXiv 2108.10904), sections 3.3 and 4: what a pretrained model is fine-tuned to do.

    python -m simvlm_jax.main --config configs/finetune.py:vqa

starts from `runs/prefixlm` (the built-in run; another one by --config.train.init_from="('RUN',)", none by "()").

On the built-in scenes: `vqa` (a classifier over the answer list), `vqa_open` (answers are written, and ranked), `entail`
(image and sentence), `transfer` (entailment learned from text alone, asked about images), `pairs` (a sentence about two
images), `captions`, `translate` (image-conditioned). On sets of one's own, by --config.data.parts.pairs.path: `easy_vqa`, `nlvr`,
`daquar`, `vqa_v2`. With `-base`, `-large` or `-huge` after the task (as in `vqa-base`) it is the paper's size and recipe.
"""

from configs import parts, prefixlm
from simvlm_jax.core.build import spec

TRANSFORMS, ANSWERING = "simvlm_jax.data.transforms", "simvlm_jax.eval.answering"
PREFIXED = ("text", "text_mask", "prefix_length")


def get_config(variant: str = "vqa"):
    """A task of TASKS, tiny or of a size of the paper's."""
    task, _, size = variant.partition("-")
    if variant not in VARIANTS:
        raise ValueError(
            f"finetune has no variant {variant!r}; it has {', '.join(TASKS)}, each also with -base, -large, -huge"
        )
    config = paper(size) if size else tiny()
    TASKS[task](config)
    return config


def tiny():
    """The built-in model and data, minutes on two cores."""
    config = parts.base()
    config.model = prefixlm.model("tiny", scan=False, dropout=0.0)
    config.data.eval.splits = dict(test="test", compositional="compositional")
    config.text.length = 32
    config.optimizer.update(name="muon", learning_rate=4e-3, b2=0.98, schedule="cosine", warmup=20.0, weight_decay=0.05)
    config.train.update(steps=600, batch_size=64, init_from=("runs/prefixlm",))
    config.checkpoint.every = 200
    return config


def paper(size: str):
    """Section 4.1: AdamW at 1e-5, 2e-5 or 5e-5, dropout 0.1, stochastic depth 0.1 on conv stem and encoder, 480 px."""
    config = parts.base()
    config.model = prefixlm.model(size, remat="full", dropout=0.1, drop_path=0.1)
    config.data.update(image_size=480, threads=16)
    config.text.length = 256
    config.optimizer.update(learning_rate=2e-5, schedule="linear", warmup=0.02, weight_decay=0.01)
    config.train.update(steps=50_000, batch_size=128, init_from=(f"runs/prefixlm-{size}",))
    config.checkpoint.update(every=1000, latest=3)
    return config


def vqa(config, path: str = "scenes/vqa", field: str = "question", soft: bool = False):
    """A linear classifier over the most frequent answers; the question goes into the encoder beside the image."""
    rows = (spec(f"{TRANSFORMS}:Tokenize", field=field), spec(f"{TRANSFORMS}:FixPrefix", whole=True))
    kept = parts.keep("image", *PREFIXED, "label", *(("scores",) if soft else ()))
    label, shown = spec(f"{TRANSFORMS}:Label", soft=soft), parts.keep("image", *PREFIXED)
    config.data.parts.pairs.update(path=path, transforms=(_pixels(config), *rows, label, kept))
    config.data.labels.size = 3129
    config.eval.suites = dict(classify=spec(f"{ANSWERING}:Classification", question=field, transforms=(*rows, shown)))


def vqa_open(config, path: str = "scenes/vqa"):
    """Answers as text, after the question as prefix: generated, and ranked among the answer list (section 4.3)."""
    rows = (spec(f"{TRANSFORMS}:TokenizePair", prompt="question", answer="answer"), spec(f"{TRANSFORMS}:DrawSeed"))
    kept = parts.keep("image", *PREFIXED, "seed")
    config.data.parts.pairs.update(path=path, transforms=(_pixels(config), *rows, kept))
    config.data.labels.size = 3129
    config.eval.suites = dict(
        generate=spec(f"{ANSWERING}:Generation", how=parts.decoding(max_length=8)),
        rank=spec(f"{ANSWERING}:Ranking"),
        hallucination=spec("simvlm_jax.eval.hallucination:Hallucination"),
    )


def entail(config):
    """Image premise, sentence hypothesis, three labels (SNLI-VE)."""
    vqa(config, "scenes/entail", "hypothesis")


def transfer(config):
    """Zero-shot cross-modality transfer (section 4.3): entailment learned from read premises, asked about seen ones."""
    room = 64
    after = dict(slots=room, field="hypothesis")
    read, seen = (spec(f"{TRANSFORMS}:TokenizeAfter", **after, read=read) for read in (True, False))
    config.text.length = room + 32
    rows = (read, spec(f"{TRANSFORMS}:Label"), parts.keep(*PREFIXED, "label"))
    config.data.parts.pairs.update(path="scenes/entail", split="train[:75%]", transforms=rows)
    config.data.labels.size = 3
    config.data.eval.splits = dict(test="test[:75%]", compositional="compositional[:75%]")
    classify = f"{ANSWERING}:Classification"
    config.eval.suites = dict(
        read=spec(classify, question="hypothesis", transforms=(read, parts.keep(*PREFIXED))),
        seen=spec(classify, question="hypothesis", transforms=(seen, parts.keep("image", *PREFIXED))),
    )


def pairs(config):
    """Two images and a sentence: a pass an image, both outputs into the head (NLVR2)."""
    vqa(config, "scenes/pairs", "sentence")
    config.model.images = 2


def captions(config):
    """Captions by cross-entropy alone, no prefix of text."""
    config.data.parts.pairs.transforms = parts.image_text_transforms(config.data.get_ref("image_size"), empty=1.0)
    config.eval.suites = dict(captions=parts.captioning(), captions_beam=parts.captioning(beams=4, n_best=3))


def translate(config):
    """Image-conditioned translation, the source text as prefix (Multi30k)."""
    rows = (spec(f"{TRANSFORMS}:TokenizePair", prompt="source", answer="target"), spec(f"{TRANSFORMS}:DrawSeed"))
    kept = parts.keep("image", *PREFIXED, "seed")
    config.data.parts.pairs.update(path="scenes/translate", transforms=(_pixels(config), *rows, kept))
    if config.model.size == "tiny":  # a new language needs new pieces: the tokenizer is made anew, the embedding too
        start = {"run": config.train.init_from[0], "map": (("embedding", None),)}
        config.train.init_from = (start,)
        config.text.update(length=96, vocabulary=384)
    how = parts.decoding(max_length=48)
    config.eval.suites = dict(translate=spec("simvlm_jax.eval.translation:Translation", how=how))


def easy_vqa(config):
    """easy-VQA: 64 px shapes, 13 answers."""
    vqa(config, "easy_vqa")
    if config.model.size == "tiny":
        config.train.steps = 1000
    _own(config, "test")


def vqa_v2(config):
    """VQAv2 as downloaded: the 3,129 answers seen nine times or more, each with its share of the ten people."""
    vqa(config, "vqa_v2", soft=True)
    config.data.whole, config.data.labels.at_least = True, 9
    _own(config, "val")


def nlvr(config):
    """NLVR: three boxes, true or false; learned from `hidden` with its boxes permuted, reported on `test`."""
    vqa(config, "nlvr", "sentence")
    config.data.parts.pairs.split = "hidden-permuted"
    _photographs(config)
    _own(config, "test")


def daquar(config):
    """DAQUAR: questions about indoor photographs, the authors' split."""
    vqa(config, "daquar")
    config.data.whole = True
    _photographs(config)
    _own(config, "test")


def _photographs(config):
    """The tiny variant at 112 px, with dropout against small data, and room for sentences of words not seen before."""
    if config.model.size == "tiny":
        config.data.image_size, config.model.dropout, config.text.length = 112, 0.1, 64


def _pixels(config):
    """Pictures in training as in evaluation: `data.whole` speaks for both."""
    return spec(f"{TRANSFORMS}:Pixels", size=config.data.get_ref("image_size"), whole=config.data.get_ref("whole"))


def _own(config, split: str):
    """Trains and evaluates on two splits of one data set."""
    del config.data.eval.path  # a field without a value, which cannot refer to another
    config.data.eval.path, config.data.eval.split = config.data.parts.pairs.get_ref("path"), split


TASKS = {
    f.__name__: f for f in (vqa, vqa_open, entail, transfer, pairs, captions, translate, easy_vqa, vqa_v2, nlvr, daquar)
}
VARIANTS = tuple(f"{task}{size}" for size in ("", "-base", "-large", "-huge") for task in TASKS)
