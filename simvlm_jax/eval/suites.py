"""Suites by name, for `simvlm eval`: what any run can be asked without having planned it."""

from typing import Any

from simvlm_jax.core.build import spec

_HERE = "simvlm_jax.eval"
_HOW = "simvlm_jax.decode.decoding:Decoding"


def _decoding(**fields: Any):
    return spec(_HOW, sampler=spec("simvlm_jax.decode.sampling:Sampler"), **fields)


def known() -> dict[str, tuple[str, Any]]:
    """{name: (what it shows, spec)}."""
    classes = dict(path="scenes/classes", splits={"test": "test"})
    prompted = spec(f"{_HERE}.captioning:Captioning", prompt="a picture of", how=_decoding())
    domains = {"all": "test[:75%]+compositional[:75%]"}
    return {
        "captions": ("captions, greedy", spec(f"{_HERE}.captioning:Captioning", how=_decoding())),
        "captions-beam": (
            "captions by beam search of 4, three best",
            spec(f"{_HERE}.captioning:Captioning", how=_decoding(beams=4, n_best=3)),
        ),
        "captions-zero-shot": ('captions after the prompt "a picture of"', prompted),
        "captions-domains": (
            "captions of scenes in, near and out of the training's (colour, shape) pairs, as NoCaps has domains",
            spec(f"{_HERE}.captioning:Captioning", how=_decoding(), path="scenes/captions", splits=domains),
        ),
        "vqa-generate": (
            "open-ended answers, generated",
            spec(f"{_HERE}.answering:Generation", how=_decoding(max_length=8), path="scenes/vqa"),
        ),
        "vqa-rank": (
            "open-ended answers, ranked among the run's answer list",
            spec(f"{_HERE}.answering:Ranking", path="scenes/vqa"),
        ),
        "translate": (
            "image-conditioned translation",
            spec(f"{_HERE}.translation:Translation", how=_decoding(max_length=32), path="scenes/translate"),
        ),
        "probe": (
            "linear probe of the image features",
            spec(f"{_HERE}.probe:LinearProbe", train_limit=5000, **classes),
        ),
        "vqa-probe": (
            "answers that a linear map reads off the features of image and question",
            spec(f"{_HERE}.probe:QuestionProbe", train_limit=5000, path="scenes/vqa", splits={"test": "test"}),
        ),
        "neighbours": (
            "classes by those of the nearest training images' features",
            spec(f"{_HERE}.neighbours:NearestNeighbours", train_limit=5000, **classes),
        ),
        "zero-shot": (
            "classes by the similarity of their names in a sentence",
            spec(f"{_HERE}.zero_shot:ZeroShot", **classes),
        ),
        "retrieval": (
            "texts of images and images of texts, recall at 1, 5 and 10 over the whole set",
            spec(f"{_HERE}.retrieval:Retrieval", path="scenes/captions", splits={"test": "test"}),
        ),
        "retrieval-video": (
            "texts of videos and videos of texts, by frames that are read one after another",
            spec(f"{_HERE}.retrieval:Retrieval", path="scenes/video", splits={"test": "test"}),
        ),
        "vqa-video": (
            "answers to questions about videos, generated",
            spec(
                f"{_HERE}.answering:Generation",
                how=_decoding(max_length=8),
                path="scenes/video",
                splits={"test": "test"},
            ),
        ),
        "compositional": (
            "true captions against minimally wrong ones: attributes, relations, order, counts",
            spec(f"{_HERE}.compositional:Compositional", path="scenes/captions", splits={"test": "test[:75%]"}),
        ),
        "generative": (
            "classification by the likelihood of texts",
            spec(f"{_HERE}.likelihood:GenerativeClassifier", **classes),
        ),
        "generative-image": (
            "classification by the likelihood of the image given a text, estimated by sampling",
            spec(f"{_HERE}.likelihood:GenerativeClassifier", by="image", **classes),
        ),
        "perplexity": (
            "how well texts are predicted: nats a piece, perplexity, bits a byte",
            spec(f"{_HERE}.perplexity:Perplexity", path="scenes/text", splits={"test": "test"}),
        ),
        "hallucination": (
            "POPE-like questions about what is there and what is not",
            spec(f"{_HERE}.hallucination:Hallucination", path="scenes/captions", splits={"test": "test[:75%]"}),
        ),
    }
