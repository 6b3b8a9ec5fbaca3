"""SimVLM's ablations (arXiv 2108.10904, section 4.4 and table 5), at equal compute on the built-in scenes.

    simvlm sweep configs/sweeps/simvlm_ablations.py --out docs/claims/simvlm.md

Every arm is pretrained with the same FLOPs, then fine-tuned alike to answer `scenes/vqa`; the score is the accuracy there, as
in the paper, on three times the test questions there are by default.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import parts

CONFIGS = Path(__file__).resolve().parent.parent
LENGTH, VOCABULARY = 24, 384


def get_config():
    """The sweep: stages, arms, scores, and the paper's directions."""
    common = {
        "text.length": LENGTH,
        "text.vocabulary": VOCABULARY,
        "log.every": 50,
        "checkpoint.every": 0,
        "checkpoint.latest": 1,
        "train.batch_size": 64,
    }
    pretrain = {
        **common,
        "train.steps": 210,
        "data.parts.documents.rows": 8,
        "data.parts.pairs.transforms": parts.image_text_transforms(64, empty=0.0),  # prefixes uniform, as in the paper
        "eval.suites": {},
    }
    finetune = {**common, "train.steps": 170, "data.eval.path": "scenes/vqa-8_8_3600_1200"}
    text_only = {
        "data.parts.pairs.path": "scenes/text",
        "data.parts.pairs.split": "train",
        "data.parts.pairs.transforms": parts.text_transforms(),
        "data.parts.pairs.cache": False,
    }
    arms = (
        _arm("full", "prefix LM, encoder-decoder, 3 stages"),
        _arm("no_pretraining", "no pretraining", pretrain=None),
        _arm("scratch", "no pretraining, fine-tuned as long as both", pretrain=None, spend_all=True),
        _arm("decoder_only", "decoder only", both={"model.decoder_only": True}),
        _arm("lm", "LM instead of prefix LM", pretrain={"model.objective": "lm"}),
        _arm("span", "span corruption", both={"model.objective": "span_corruption"}),
        _arm("stem2", "2 conv stages", both={"model.stem_stages": 2}),
        _arm("stem4", "4 conv stages", both={"model.stem_stages": 4}),
        _arm("patches", "plain patches", both={"model.stem_stages": 0}),
        _arm("images_only", "image-to-text only", pretrain={"data.parts.documents.rows": 0}),
        _arm("text_only", "text-to-text only", pretrain=text_only),
    )
    directions = (  # what the paper says, the arm that is better by it, the worse one
        ("pretraining helps", "full", "no_pretraining"),
        ("pretraining beats fine-tuning for as long", "full", "scratch"),
        ("an encoder-decoder beats a decoder alone", "full", "decoder_only"),
        ("prefix LM beats LM", "full", "lm"),
        ("prefix LM beats span corruption", "full", "span"),
        ("3 conv stages beat 2", "full", "stem2"),
        ("3 conv stages beat 4", "full", "stem4"),
        ("a conv stem beats plain patches", "full", "patches"),
        ("text-only data beside image-text data helps", "full", "images_only"),
        ("image-text data beside text-only data helps", "full", "text_only"),
        ("image-text data alone beats text-only data alone", "images_only", "text_only"),
    )
    return ConfigDict(
        dict(
            name="simvlm_ablations",
            seeds=(0, 1, 2),
            tokenizer=dict(
                paths=(("scenes/captions", True), ("scenes/vqa", True), ("scenes/text", False)),
                vocabulary=VOCABULARY,
                length=LENGTH,
            ),
            stages=(
                _dict(name="pretrain", config=f"{CONFIGS}/prefixlm.py", set=pretrain),
                _dict(name="finetune", config=f"{CONFIGS}/finetune.py:vqa", set=finetune),
            ),
            arms=arms,
            scores=(
                ("classify/test/accuracy", "VQA accuracy, test"),
                ("classify/compositional/accuracy", "VQA accuracy, unseen pairs"),
            ),
            claims=tuple(_dict(text=text, better=better, worse=worse) for text, better, worse in directions),
        )
    )


def _arm(name, title, both=None, spend_all=False, **stages):
    """An arm; `both` is set in both stages, for what is pretrained is fine-tuned."""
    sets = {"pretrain": both, "finetune": both} if both else stages
    return _dict(name=name, title=title, spend_all=spend_all, sets=sets)


def _dict(**fields):
    return ConfigDict(fields, allow_dotted_keys=True)
