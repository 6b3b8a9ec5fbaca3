"""Zero-shot classification: the class whose name, in a sentence, is most like the image (CLIP, arXiv 2103.00020, section 3.1)."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import read_json, read_text
from simvlm_jax.core.trust import buildable
from simvlm_jax.data.transforms import answers_of
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.metrics.bootstrap import mean_of
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Examples, Outcome, filled_in, pictures_of, probabilities
from simvlm_jax.infer.answered import Answered, counts
from simvlm_jax.infer.engine import Engine
from simvlm_jax.run.progress import Countdown
from simvlm_jax.text.lines import lines_of

NAMES_AT_ONCE = 50


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Classes):
    """Each class is the mean of its prompts' vectors (of length 1 before and after the mean), as CLIP ensembles prompts.

    classes: their names, by default those found in the data. templates: sentences that name a class, "{}" or "{name}" being the
    name and "{a}" its article. prompts: a JSON file {"classes", "templates"}, as CLIP's authors publish theirs, in place of
    both; or a text file with one template per line.
    """

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{a} {name}",)
    prompts: str = ""

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        classes, templates = self.names_and_templates()
        classes = tuple(dict.fromkeys(classes or getattr(examples.source, "classes", ()) or examples.truths()))
        if not self.prompts and self.templates == ZeroShot.templates:  # data sets may bring their own
            templates = getattr(examples.source, "templates", ()) or templates
            check_templates(templates)
        known = {self.form(name) for name in classes}
        strange = sum(self.form(t) not in known for t in examples.truths())
        vectors, cut = class_vectors(engine, classes, templates)
        notes = {
            "classes": listed(classes),
            "templates": len(templates),
            **counts(truths_not_among_classes=strange),
            **cut,
        }
        scale = engine.logit_scale()
        out: AnsweredExamples = []
        for rows, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            alike = scale * engine.similarity(engine.embed_images(images), vectors)
            best = [_five_best(classes, s) for s in alike]
            out += [({**e, "chance": 1 / len(classes)}, a) for e, a in zip(rows, best, strict=True)]
        return Answered(out, notes)

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        found = super().outcome(engine, answered)
        among = [self.form(answers_of(e)[0]) in {self.form(name) for name, _ in a.n_best} for e, a in answered]
        scores = {**found.scores, "top5": float(np.mean(among)), "chance": float(answered[0][0]["chance"])}
        return dataclasses.replace(
            found, scores=scores, sums={**found.sums, "top5": mean_of(among, pictures_of(answered))}
        )

    def names_and_templates(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is asked, from fields or files.

        Raises:
          ValueError: the file is none of the two kinds, or there is no template.
        """
        classes, templates = tuple(self.classes), tuple(self.templates)
        if self.prompts:
            classes, templates = read_prompts(Path(self.prompts).expanduser(), classes)
        check_templates(templates)
        return classes, templates

    def decoding(self) -> dict[str, Any]:
        _, templates = self.names_and_templates()
        text = "\n".join(templates)
        return {
            "prompt": text if len(templates) < 4 else f"{len(templates)} templates",
            "templates": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


def read_prompts(path: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(classes, templates) of a JSON file {"classes", "templates"}, or of a text file with one template per line."""
    if not path.is_file():
        raise FileNotFoundError(f"prompts {str(path)!r} does not exist")
    if path.suffix != ".json":
        return classes, tuple(line.strip() for line in lines_of(read_text(path)) if line.strip())
    try:
        given = read_json(path)
        named, templates = given.get("classes", []), given["templates"]
        fits = all(isinstance(x, list) and all(isinstance(word, str) for word in x) for x in (named, templates))
    except (ValueError, KeyError, AttributeError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f'prompts {str(path)!r} must hold {{"classes": [...], "templates": [...]}}, lists of texts')
    return classes or tuple(named), tuple(templates)


def check_templates(templates: Sequence[str]) -> None:
    """Refuses what does not say a name.

    Raises:
      ValueError: there is no template, or one without a place for the name, or with a place for something else.
    """
    if not templates:
        raise ValueError('classification by names needs a template, such as "a photo of {}"')
    for template in templates:
        try:
            fits = name_in(template, "\0") != name_in(template, "\1")
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            fits = False
        if not fits:
            raise ValueError(
                f'template {template!r} must have one place for the name, "{{}}" or "{{name}}", and may have "{{a}}"'
            )


def listed(classes: Sequence[str]) -> dict[str, Any]:
    """Number and hash of a list of classes, for the notes beside a score."""
    return {"count": len(classes), "sha256": hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]}


def name_in(template: str, name: str) -> str:
    """Puts the name of a class, and its article, into a template."""
    return filled_in(template, name, name=name, a="an" if name[:1].lower() in "aeiou" else "a")


def class_vectors(engine: Engine, classes: Sequence[str], templates: Sequence[str]) -> Answered[np.ndarray]:
    """Vectors of length 1 [classes,E], each of the mean of a class's prompts."""
    out = []
    notes: Counter[str] = Counter()
    pace = Countdown("classes", len(classes))
    for start in range(0, len(classes), NAMES_AT_ONCE):
        names = classes[start : start + NAMES_AT_ONCE]
        made, cut = engine.embed_texts([name_in(t, name) for name in names for t in templates])
        notes.update(cut)
        mean = _unit(made.reshape(len(names), len(templates), -1)).mean(1)
        out.append(_unit(mean))
        pace.at(start + len(names))
    pace.close()
    return Answered(np.concatenate(out), notes)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _five_best(classes: tuple[str, ...], alike: np.ndarray) -> Answer:
    """The class most alike and the four after it; scores are probabilities."""
    order = np.argsort(-alike, kind="stable")[:5]
    likely = probabilities(alike)
    best = tuple((classes[i], float(likely[i])) for i in order)
    return Answer(*best[0], best)
