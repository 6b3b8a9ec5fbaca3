"""The evaluation at the end of a run: every suite on every split, the controls, `results.json`, and the page."""

import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from simvlm_jax.data.source import Source
from simvlm_jax.data.sources import open_source, open_split
from simvlm_jax.data.splits import NoSuchSplit
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.eval.metrics.bootstrap import intervals, numbered
from simvlm_jax.eval.provenance import provenance
from simvlm_jax.eval.suite import Examples, Item, Outcome, Suite, pictures_of
from simvlm_jax.infer.answered import Notes
from simvlm_jax.infer.engine import Engine
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.report import Card, Section, write_report
from simvlm_jax.text.padding import pad_rows

CARDS, MISTAKES = 24, 8
MOST_SAMPLES = 20_000
"""Images whose own scores are kept."""


def evaluate_run(
    run: RunDir,
    engine: Engine,
    suites: dict[str, Suite],
    sources: dict[str, Source],
    step: int,
    *,
    trained: int,
    pixels: Pixels,
    limit: int = 0,
    bad: float = 0.05,
    texts: Callable[[], Sequence[str]] = tuple,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Runs every suite on its splits, with controls on the first; writes the page and results.json.

    sources: the run's own evaluation data by split. step: of the weights. trained: how far the run has come. bad: share of
    examples that may be left out. texts: training texts that may serve as the best constant answer. A suite that cannot be
    run leaves an entry with its `error`; with several processes it ends the evaluation.

    Raises:
      ValueError: no suite could be run.
    """
    entries: list[dict[str, Any]] = []
    sections: list[Section] = []

    def failed(name: str, split: str, e: Exception) -> None:  # what one suite cannot do must not cost the others
        log(f"{name} · {split} could not be run: {e}")
        entries.append({"suite": name, "split": split, "control": None, "scores": {}, "error": str(e)})

    for name, suite in suites.items():
        try:
            own = suite_sources(suite, sources)
        except (ValueError, OSError) as e:
            if jax.process_count() > 1:  # the others may see the data and ask the model without this process
                raise
            for split in suite.splits or (("test",) if suite.path else sources):
                failed(name, split, e)
            continue
        for i, (split, source) in enumerate(own.items()):
            try:
                examples = make_examples(suite, split, source, pixels, suite.limit or limit, bad, run.quarantine)
                made, outcome = evaluate(engine, name, suite, examples, step, controls=i == 0, texts=texts, log=log)
                section = _section(f"{name} · {split}", engine, examples, outcome)
            except (ValueError, OSError) as e:
                if jax.process_count() > 1:
                    raise
                failed(name, split, e)
                continue
            entries += made
            sections.append(section)
    if entries and all("error" in e for e in entries):
        raise ValueError(f"no suite could be run; the first says: {entries[0]['error']}")
    run.write_results(step, None, entries)  # first, so that no page that cannot be written costs the scores
    write_report(run, entries, sections)
    run.write_results(step, trained, entries)  # last, for it says that the run is finished
    return entries


def suite_sources(suite: Suite, sources: dict[str, Source]) -> dict[str, Source]:
    """A suite's own data, or the run's; "test" first."""
    if suite.path:
        splits = suite.splits or {"test": "test"}  # data that tells no splits apart is all of it to be tested on
        return {k: (open_source if s == "test" else open_split)(suite.path, s) for k, s in splits.items()}
    if unknown := [s for s in suite.splits if s not in sources]:
        raise ValueError(f"a suite names split {unknown[0]!r}; config.data.eval.splits has {', '.join(sources)}")
    chosen = {k: sources[k] for k in suite.splits or sources}
    return dict(sorted(chosen.items(), key=lambda item: item[0] != "test"))


def own_validation(suite: Suite) -> Source | None:
    """The examples for a suite with data of its own while a run trains: their validation split, None if there is none.

    Never what is reported in the end, for checkpoints are chosen by it.
    """
    reported = {repr(source) for source in suite_sources(suite, {}).values()}
    used = {name for split in suite.splits.values() for name in re.findall(r"\w+", split)}  # "validation[:50%]" too
    for split in ("validation", "val"):
        with contextlib.suppress(NoSuchSplit):
            if split not in used and repr(source := open_source(suite.path, split)) not in reported:
                return source
    return None


def make_examples(
    suite: Suite, split: str, source: Source, pixels: Pixels, limit: int, bad: float, record: Any, blind: bool = False
) -> Examples:
    """The examples a suite asks about."""
    return Examples(
        split,
        source,
        pixels if suite.reads_images else None,
        fields=suite.fields,
        limit=limit,
        bad=bad,
        record=record,
        blind=blind,
        expand=suite.expand,
    )


def evaluate(
    engine: Engine,
    name: str,
    suite: Suite,
    examples: Examples,
    step: int,
    *,
    controls: bool = True,
    texts: Callable[[], Sequence[str]] = tuple,
    log: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], Outcome]:
    """(results.json entries of one suite on one split, with its controls; the outcome without control)."""
    answered, notes = suite.answers(engine, examples)
    outcome = suite.outcome(engine, answered)
    causes = {k: v for k, v in notes.items() if k != "answers_cut"}  # which follows from the answers, as the scores do
    why = provenance(engine, suite, examples, causes, len(answered), step)

    def entry(control: str | None, found: Outcome, why: dict[str, Any]) -> dict[str, Any]:
        scores = {k: v for k, v in found.scores.items() if math.isfinite(v)}  # of what nothing is known is left out
        log(_line(f"{name} · {examples.split}" + (f", {control}" if control else ""), scores))
        about = {"suite": name, "split": examples.split, "control": control}
        sure = {k: [round(v, 6) for v in pair] for k, pair in intervals(found.sums).items() if k in scores}
        return {**about, "scores": scores, "intervals": sure, "provenance": why}

    entries = [entry(None, outcome, why)]
    if len(answered) <= MOST_SAMPLES:  # to be compared image by image with another run's
        means = {k: s.rows for k, s in outcome.sums.items() if len(s.rows) == len(answered) and s.rows.shape[1] == 2}
        entries[0]["samples"] = {
            k: [round(float(v), 5) for v in rows[:, 0]]
            for k, rows in means.items()
            if (rows[:, 1] == 1).all() and np.isfinite(rows).all()
        }
        if max(pictures := numbered(pictures_of(answered))) + 1 < len(pictures):  # several are about one picture
            entries[0]["pictures"] = pictures
    entries[0]["remarks"] = _remarks(notes, examples)
    for remark in entries[0]["remarks"]:
        log(f"{'':>28}  {remark}")
    if controls and "blind" in suite.controls and examples.pictured:
        unseen = examples.unseen()
        found = suite.outcome(engine, suite.answers(engine, unseen).values)
        entries.append(entry("blind", found, {**why, "preprocessing": unseen.preprocessing()}))
    if controls and "constant" in suite.controls:
        same = suite.constant(engine, answered, texts)
        if same:
            entries.append(
                entry("constant", suite.outcome(engine, same), {**why, "decoding": {"constant": same[0][1].text}})
            )
    return entries, outcome


def _remarks(notes: Notes, examples: Examples) -> list[str]:
    """What a reader of the scores has to know: what was left out, and what was cut."""
    counts = (
        ("left out, for they cannot be read or lack a field", examples.left_out),
        ("prompts that lost their beginning, for want of room before the answer", notes.get("prompts_cut")),
        ("texts that lost their end, being longer than config.text.length", notes.get("texts_cut")),
        ("answers that max_length ended", notes.get("answers_cut")),
        ("truths that are none of the classes, so that they are never found", notes.get("truths_not_among_classes")),
        ("the most similar, ranked again by score_pair", notes.get("rerank")),
    )
    return [f"{what}: {count:,}" for what, count in counts if count]


def _line(name: str, scores: dict[str, float]) -> str:
    shown = (
        "scene_accuracy",
        "coverage",
        "hallucination",
        "cider",
        "bleu4",
        "rouge_l",
        "accuracy",
        "f1",
        "bleu",
        "exact",
        "perplexity",
        "bits_per_byte",
        "top5",
        "image_to_text_r1",
        "text_to_image_r1",
        "chance",
        "chance_r1",
    )
    return f"{name:>28}  " + "  ".join(f"{k} {scores[k]:.3f}" for k in shown if k in scores)


def _section(title: str, engine: Engine, examples: Examples, outcome: Outcome) -> Section:
    """What the page shows of an outcome: a spread of examples, the worst mistakes, the confusion of answers."""
    items = outcome.items
    spread = items[:: -max(len(items) // CARDS, 1)][:CARDS]  # from the last on: in `scenes` those hold the most objects
    worst = sorted((i for i in items if i.badness > 0), key=lambda i: -i.badness)[:MISTAKES]
    cards = _cards([*spread, *worst], engine, examples)
    return Section(title, cards[: len(spread)], cards[len(spread) :], outcome.confusion)


def _cards(items: list[Item], engine: Engine, examples: Examples) -> list[Card]:
    """Items for the page, with the attention of every word where the model can show it."""
    pictures = [
        examples.image(i.example["index"]) if examples.pictured else np.zeros((0, 1, 1, 3), np.uint8) for i in items
    ]
    looking = [n for n, i in enumerate(items) if not i.question and len(pictures[n]) == 1]
    words = _attention([items[n].answer.text for n in looking], [pictures[n] for n in looking], engine)
    shown = dict(zip(looking, words, strict=True))
    return [
        Card(
            key=str(item.example["key"]),
            images=[_png(image) for image in pictures[n]],
            answer=item.answer.text,
            question=item.question,
            references=list(item.truth),
            claims=list(item.claims),
            right=item.right,
            words=shown.get(n, []),
            n_best=list(item.answer.n_best) if len(item.answer.n_best) > 1 else [],
        )
        for n, item in enumerate(items)
    ]


def _attention(texts: list[str], images: list[np.ndarray], engine: Engine) -> list[list[tuple[str, list[list[float]]]]]:
    """For every text its words, each with the map of where the model looks while it says it."""
    if not texts or not engine.has("attention"):
        return [[] for _ in texts]
    length = engine.vocabulary.length
    ids = [engine.tokenizer.encode(s)[:length] for s in texts]
    text, mask = pad_rows(ids, length, engine.vocabulary.pad)
    weights = engine.apply("attention", "attention", {"image": np.stack(images), "text": text, "text_mask": mask})
    return [_words(engine.tokenizer.pieces(own), w) for own, w in zip(ids, weights, strict=True)]


def _words(pieces: list[str], weights: np.ndarray) -> list[tuple[str, list[list[float]]]]:
    """Pieces and where each looks [T,P] as words; a word looks where any of its pieces does."""
    side = round(weights.shape[-1] ** 0.5)
    words: list[tuple[str, np.ndarray]] = []
    for piece, row in zip(pieces, weights[: len(pieces)], strict=True):
        if piece.startswith(" ") or not words:
            words.append((piece.strip(), row))
        else:
            words[-1] = (words[-1][0] + piece, np.maximum(words[-1][1], row))
    return [(w, (r / max(r.max(), 1e-9)).reshape(side, side).round(2).tolist()) for w, r in words if w]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
