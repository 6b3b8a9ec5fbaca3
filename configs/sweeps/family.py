"""SimVLM, CLIP, SigLIP, Llip and CoCa, controlled: the same towers, data, tokenizer, optimizer, batch and FLOPs.

    simvlm sweep configs/sweeps/family.py --out docs/claims/family.md

Every arm is trained once on the built-in scenes of one to three objects and asked everything that it can be asked; a score that a
model has no means for is left empty. Beside the five: SigLIP's starts (arXiv 2303.15343, table 4) and CoCa's loss weights
(arXiv 2205.01917, table 8b).
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import parts
from simvlm_jax.core.build import spec

CONFIGS = Path(__file__).resolve().parent.parent
LENGTH, VOCABULARY = 24, 384
ZERO_SHOT, VQA = "zero_shot/test/accuracy", "vqa_probe/test/accuracy"


def suites() -> dict:
    """What every arm is asked, on samples small enough for a seed to take three minutes, and without controls."""
    some = {"splits": {"test": "test[:75%]"}, "path": "scenes/captions"}
    classes = {"splits": {"test": "test"}, "path": "scenes/classes"}
    probe = "simvlm_jax.eval.probe"
    questions = {"path": "scenes/vqa", "splits": {"test": "test"}, "train_limit": 1500, "limit": 1000}
    found = dict(
        zero_shot=parts.zero_shot(limit=600),
        retrieval=parts.retrieval(path="scenes/captions", splits={"test": "test"}, limit=1000),
        compositional=spec("simvlm_jax.eval.compositional:Compositional", **some, limit=500),
        probe=spec(f"{probe}:LinearProbe", **classes, train_limit=1000, limit=600),
        vqa_probe=spec(f"{probe}:QuestionProbe", **questions),
        captions=parts.captioning(),
        generative=spec("simvlm_jax.eval.likelihood:GenerativeClassifier", **classes, limit=200),
    )
    found["captions"].update(path="scenes/captions", splits={"test": "test[:75%]"}, limit=300)
    for suite in found.values():
        with suite.unlocked():
            suite.controls = ()
    return found


def get_config():
    """The sweep: one stage, its arms, scores, and the papers' directions."""
    common = {
        "text.length": LENGTH,
        "text.vocabulary": VOCABULARY,
        "text.spelling": "",
        "log.every": 50,
        "checkpoint.every": 0,
        "checkpoint.latest": 1,
        "train.batch_size": 256,
        "train.steps": 120,
        "data.parts.pairs.split": "train[:37%]",
        "optimizer.warmup": 20.0,
        "optimizer.learning_rate": 1e-2,
        "eval.suites": suites(),
    }
    arms = (
        _arm("simvlm", "SimVLM", f"{CONFIGS}/prefixlm.py"),
        _arm("clip", "CLIP", f"{CONFIGS}/clip.py"),
        _arm("siglip", "SigLIP", f"{CONFIGS}/siglip.py"),
        _arm("llip", "Llip", f"{CONFIGS}/llip.py"),
        _arm("coca", "CoCa", f"{CONFIGS}/coca.py:paper_weights"),
        _arm("siglip_no_bias", "SigLIP, no b", f"{CONFIGS}/siglip.py:no_bias"),
        _arm("siglip_scale1", "SigLIP, t' = log 1", f"{CONFIGS}/siglip.py:scale1"),
        _arm("siglip_bias0", "SigLIP, b = 0", f"{CONFIGS}/siglip.py:bias0"),
        _arm("siglip_bias0_scale1", "SigLIP, b = 0, t' = log 1", f"{CONFIGS}/siglip.py:bias0_scale1"),
        _arm("coca_20_1", "CoCa, captions 20 : 1", f"{CONFIGS}/coca.py"),
        _arm("coca_1_1", "CoCa, captions 1 : 1", f"{CONFIGS}/coca.py:captions1_pairs1"),
        _arm("coca_1_2", "CoCa, captions 1 : 2", f"{CONFIGS}/coca.py:captions1_pairs2"),
        _arm("coca_contrastive", "CoCa, contrastive only", f"{CONFIGS}/coca.py:contrastive_only"),
        _arm("coca_captions", "CoCa, captions only", f"{CONFIGS}/coca.py:caption_only"),
    )
    directions = (  # what the papers say, the arm that is better by it, the worse one, the score
        ("SigLIP beats CLIP at a small batch", "siglip", "clip", ZERO_SHOT),
        ("Llip beats SigLIP", "llip", "siglip", ZERO_SHOT),
        ("CoCa captions better than SimVLM", "coca", "simvlm", "captions/test/cider"),
        ("CoCa's two losses beat its contrastive one alone", "coca", "coca_contrastive", ZERO_SHOT),
        ("CoCa's two losses beat its contrastive one alone", "coca", "coca_contrastive", VQA),
        ("CoCa's two losses beat its captioning one alone", "coca", "coca_captions", VQA),
        ("2 : 1 for captions beats 1 : 1", "coca", "coca_1_1", ZERO_SHOT),
        ("2 : 1 for captions beats 1 : 2", "coca", "coca_1_2", ZERO_SHOT),
        ("SigLIP wants a bias", "siglip", "siglip_no_bias", ZERO_SHOT),
        ("t' = log 10 beats log 1", "siglip", "siglip_scale1", ZERO_SHOT),
        ("b = -10 beats 0", "siglip", "siglip_bias0", ZERO_SHOT),
        ("b = -10 beats 0, also at t' = log 1", "siglip_scale1", "siglip_bias0_scale1", ZERO_SHOT),
    )
    return ConfigDict(
        dict(
            name="family",
            seeds=(0, 1, 2),
            tokenizer=dict(
                paths=(("scenes/captions", True), ("scenes/vqa", True)), vocabulary=VOCABULARY, length=LENGTH
            ),
            stages=(_dict(name="train", config=f"{CONFIGS}/prefixlm.py", set=common),),
            arms=arms,
            scores=(
                (ZERO_SHOT, "zero-shot, by similarity"),
                ("generative/test/accuracy", "zero-shot, by likelihood"),
                ("retrieval/test/image_to_text_r1", "R@1, image to text"),
                ("retrieval/test/text_to_image_r1", "R@1, text to image"),
                ("captions/test/scene_accuracy", "captions that are true"),
                ("captions/test/cider", "CIDEr-D"),
                (VQA, "VQA, probe"),
                ("probe/test/accuracy", "classes, probe"),
                ("compositional/test/accuracy_attribute", "twins: attribute"),
                ("compositional/test/accuracy_relation", "twins: relation"),
                ("compositional/test/accuracy_order", "twins: order"),
                ("compositional/test/accuracy_count", "twins: count"),
            ),
            figure=(
                ZERO_SHOT,
                "retrieval/test/image_to_text_r1",
                "captions/test/scene_accuracy",
                VQA,
                "compositional/test/accuracy_attribute",
            ),
            claims=tuple(_dict(text=text, better=a, worse=b, score=score) for text, a, b, score in directions),
        )
    )


def _arm(name, title, config):
    """An arm, by its own file; micro-batches of 128 are the fastest on two cores, and change nothing."""
    micro = {} if name == "simvlm" else {"train.accumulate": 2}
    return _dict(name=name, title=title, sets={"train": micro}, configs={"train": config})


def _dict(**fields):
    return ConfigDict(fields, allow_dotted_keys=True)
