"""The evaluation at the end of a run: every split and the controls, `results.json`, and the page."""

import hashlib
import importlib.metadata
import io
from typing import Any

import jax
import numpy as np
from PIL import Image

from simvlm_jax.data.sources import Source
from simvlm_jax.eval.captioning import Captioner, CaptionSuite, Sample, best_constant
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.report import Card, write_report

_PACKAGES = ("jax", "flax", "optax", "numpy", "pillow", "sentencepiece", "simvlm_jax")


def provenance(captioner: Captioner, suite: CaptionSuite, images: int, step: int) -> dict[str, Any]:
    """What a score depends on; `images` are those scored."""
    label = f"{suite.source!r} {len(suite.source)} limit {suite.limit}"
    return {
        "data": {"source": label, "fingerprint": hashlib.sha256(label.encode()).hexdigest()[:16], "images": images},
        "prompt": captioner.prompt,
        "preprocessing": {"image_size": suite.image_size, "crop": "central square", "resample": "bicubic"},
        "decoding": {
            "temperature": captioner.sampler.temperature,
            "top_k": captioner.sampler.top_k,
            "top_p": captioner.sampler.top_p,
            "max_length": captioner.max_length,
            "seed": captioner.seed,
        },
        "tokenizer": captioner.tokenizer.sha256[:16],
        "checkpoint": step,
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def evaluate_run(
    run: RunDir,
    captioner: Captioner,
    sources: dict[str, Source],
    params: Any,
    extra: Any,
    step: int,
    *,
    trained: int,
    image_size: int,
    limit: int = 0,
    bad: float = 0.05,
    constants: list[str] | None = None,
    cards: int = 24,
    say: Any = print,
) -> list[dict[str, Any]]:
    """Scores every split, and on "test" the blind control too; writes the page and results.json.

    step: of the weights. trained: how far the run has come. bad: share of examples that may be left out.
    constants: candidate captions of which the best constant one is a second control on "test".
    """
    entries, galleries = [], {}
    for split in sorted(sources, key=lambda name: name != "test"):
        source = sources[split]
        suite = CaptionSuite(split, source, image_size, limit, bad, run.quarantine)
        scores, samples = suite.run(captioner, params, extra)
        why = provenance(captioner, suite, len(samples), step)
        entries.append(_entry(split, None, scores, why))
        say(_line(split, scores))
        galleries[split] = [  # from the last on: in `scenes` those hold the most objects
            _card(s, captioner, params, extra) for s in samples[:: -max(len(samples) // cards, 1)][:cards]
        ]
        if split != "test":
            continue
        blind, _ = suite.run(captioner, params, extra, blind=True)
        entries.append(_entry(split, "blind", blind, why))
        say(_line("test, blind", blind))
        if constants:
            said, constant = best_constant([s.references for s in samples], constants)
            entries.append(_entry(split, "constant", constant, {**why, "decoding": {"constant": said}}))
            say(_line("test, best constant caption", constant))
    write_report(run, entries, galleries)
    run.write_results(step, trained, entries)  # last, for it says that the run is finished
    return entries


def _entry(split: str, control: str | None, scores: dict[str, float], why: dict[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in scores.items() if np.isfinite(v)}
    return {"suite": "captions", "split": split, "control": control, "scores": known, "provenance": why}


def _line(name: str, scores: dict[str, float]) -> str:
    shown = ("scene_accuracy", "coverage", "hallucination", "cider", "bleu4", "rouge_l")
    return f"{name:>28}  " + "  ".join(f"{k} {scores[k]:.3f}" for k in shown if k in scores)


def _card(sample: Sample, captioner: Captioner, params: Any, extra: Any) -> Card:
    """A sample for the page, with the attention of every word where the model can show it."""
    return Card(
        key=sample.key,
        png=_png(sample.pixels),
        caption=sample.caption,
        references=sample.references,
        claims=list(sample.verdict.claims) if sample.verdict else [],
        right=sample.verdict.accurate if sample.verdict else None,
        words=_attention(sample, captioner, params, extra),
    )


def _attention(sample: Sample, captioner: Captioner, params: Any, extra: Any) -> list[tuple[str, list[list[float]]]]:
    attention = captioner.model.capabilities().get("attention")
    ids = captioner.tokenizer.encode(sample.caption)[: captioner.tokenizer.vocabulary.length]
    if attention is None or not ids:
        return []
    text = np.zeros((1, captioner.tokenizer.vocabulary.length), np.int32)
    text[0, : len(ids)] = ids
    mask = np.arange(text.shape[1])[None] < len(ids)
    weights = np.asarray(
        _jitted(attention)(params, extra, {"image": sample.pixels[None, None], "text": text, "text_mask": mask})
    )[0]
    side = round(weights.shape[-1] ** 0.5)
    words: list[tuple[str, np.ndarray]] = []
    for piece, row in zip(captioner.tokenizer.pieces(ids), weights[: len(ids)], strict=True):
        if piece.startswith(" ") or not words:
            words.append((piece.strip(), row))
        else:
            words[-1] = (words[-1][0] + piece, np.maximum(words[-1][1], row))
    return [(w, (r / max(r.max(), 1e-9)).reshape(side, side).round(2).tolist()) for w, r in words if w]


_compiled: dict[Any, Any] = {}


def _jitted(f):
    return _compiled.setdefault(f, jax.jit(f))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
