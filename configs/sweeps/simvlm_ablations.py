"""SimVLM's ablations (arXiv 2108.10904, section 4.4 and table 5), at equal compute on the built-in scenes.

    simvlm sweep configs/sweeps/simvlm_ablations.py --out docs/claims/simvlm.md

Every arm is pretrained with the same FLOPs, then fine-tuned alike to answer `scenes/vqa`; the score is the accuracy there, as
in the paper. Three seeds.
"""

from ml_collections import ConfigDict

from configs import parts
from simvlm_jax.core.build import spec

LENGTH = 24


def get_config():
    """The sweep: stages, arms, scores, and the paper's directions."""
    common = {
        "text.length": LENGTH,
        "text.vocabulary": 320,
        "log.every": 50,
        "checkpoint.every": 0,
        "checkpoint.latest": 1,
        "train.batch_size": 64,
    }
    pretrain = {
        **common,
        "train.steps": 300,
        "data.documents.batch_size": 8,
        "eval.suites": {},
    }
    finetune = {**common, "train.steps": 200, "train.accumulate": 1}
    text_only = {"data.train.path": "scenes/text", "data.train.transforms": parts.text_transforms(), "data.train.cache": False, "data.train.split": "train"}
    arms = dict(
        full={},
        decoder_only=_both({"model.decoder_only": True}),
        lm=dict(pretrain={"model.objective": "lm"}),
        span=_both({"model.objective": "span_corruption"}),
        stem2=_both({"model.stem_stages": 2}),
        stem4=_both({"model.stem_stages": 4}),
        patches=_both({"model.stem_stages": 0}),
        images_only=dict(pretrain={"data.documents.batch_size": 0}),
        text_only=dict(pretrain=text_only),
        no_pretraining=dict(pretrain=None),
    )
    return ConfigDict(
        dict(
            name="simvlm_ablations",
            seeds=(0, 1, 2),
            baseline="full",
            stages=(
                ConfigDict(dict(name="pretrain", config="configs/prefixlm.py", match=True, set=pretrain)),
                ConfigDict(dict(name="finetune", config="configs/finetune.py:vqa", match=False, set=finetune)),
            ),
            arms=arms,
            titles=dict(
                full="prefix LM, encoder-decoder, 3 stages",
                decoder_only="decoder only",
                lm="LM instead of prefix LM",
                span="span corruption",
                stem2="2 conv stages",
                stem4="4 conv stages",
                patches="plain patches",
                images_only="without text-only data",
                text_only="without image-text data",
                no_pretraining="no pretraining",
            ),
            scores={
                "classify/test/accuracy": "VQA accuracy, test",
                "classify/compositional/accuracy": "VQA accuracy, unseen pairs",
            },
            claims=tuple(
                ConfigDict(dict(text=text, better="full", worse=worse))
                for text, worse in (
                    ("pretraining helps", "no_pretraining"),
                    ("an encoder-decoder beats a decoder alone", "decoder_only"),
                    ("prefix LM beats LM", "lm"),
                    ("prefix LM beats span corruption", "span"),
                    ("3 conv stages beat 2", "stem2"),
                    ("3 conv stages beat 4", "stem4"),
                    ("a conv stem beats plain patches", "patches"),
                    ("text-only data beside images helps", "images_only"),
                    ("image-text data helps", "text_only"),
                )
            ),
        )
    )


def _both(sets):
    """The same in both stages: what is pretrained is fine-tuned."""
    return dict(pretrain=sets, finetune=sets)
