"""`simvlm classify RUN image ... --labels a,b,c`: which of any names fits an image, without training on them."""

import argparse
import json
import sys
from pathlib import Path

from simvlm_jax.core.files import printable


def main(argv: list[str]) -> int:
    """Names every readable image; returns 1 if any could not be read."""
    parser = argparse.ArgumentParser(prog="simvlm classify", description="Classify images by names of your own.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument("images", nargs="+", help="image files: JPEG, PNG, WebP, GIF (first frame), BMP")
    parser.add_argument(
        "--labels", help='names, with commas: "red circle,blue square" (a classifier of images has its own by default)'
    )
    parser.add_argument(
        "--prompts", help='a JSON file {"classes", "templates"}, or a text file with one template per line'
    )
    parser.add_argument(
        "--template",
        action="append",
        help='how a name is said, "{a} photo of {name}" or "a photo of {}"; may be repeated',
    )
    parser.add_argument("--top", type=int, default=5, help="names an image, the best first")
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--json",
        action="store_true",
        help='one line an image: {"image", "labels": [{"label", "probability"}]} or "error"',
    )
    args = parser.parse_intermixed_args(argv)
    if args.top < 1 or args.batch_size < 1:
        parser.error("--top and --batch-size must be at least 1")

    import numpy as np

    from simvlm_jax.api import name_scores
    from simvlm_jax.cli import print_cuts
    from simvlm_jax.data.assemble import eval_pixels
    from simvlm_jax.data.transforms import NO_DRAWS
    from simvlm_jax.eval.suite import probabilities
    from simvlm_jax.eval.zero_shot import check_templates, read_prompts
    from simvlm_jax.infer.engine import load_engine
    from simvlm_jax.jobs.embed import FileList
    from simvlm_jax.parallel.environment import setup_jax

    labels = tuple(dict.fromkeys(name.strip() for name in (args.labels or "").split(",") if name.strip()))
    templates: tuple[str, ...] = tuple(args.template or ("{a} {name}",))
    if args.prompts:
        named, given = read_prompts(Path(args.prompts).expanduser(), labels)
        labels = tuple(dict.fromkeys(named))  # CLIP's own list names two classes twice
        templates = tuple(args.template or given)
    check_templates(templates)
    setup_jax()
    engine, run = load_engine(args.run, args.step, min(args.batch_size, max(len(args.images), 8)))
    if not labels and not engine.reads:
        labels = engine.labels
    if len(labels) < 2:
        parser.error("two labels are needed at least: --labels a,b or --prompts FILE")
    scores_of, notes = name_scores(engine, labels, templates)
    if notes:
        print_cuts(notes, engine.vocabulary.length)
    pixels, source, ok = eval_pixels(run.config.data), FileList(args.images), True
    for start in range(0, len(source), engine.batch_size):
        seen, names, answers = [], [], {}
        for i in range(start, min(start + engine.batch_size, len(source))):
            try:
                seen.append(pixels(source[i], NO_DRAWS)["image"])
                names.append(source.key(i))
            except (ValueError, OSError) as e:
                answers[source.key(i)] = {"image": source.key(i), "error": str(e)}
        if seen:
            for name, likely in zip(names, probabilities(scores_of(np.stack(seen))), strict=True):
                best = np.argsort(-likely, kind="stable")[: args.top]
                ranked = [{"label": labels[j], "probability": round(float(likely[j]), 4)} for j in best]
                answers[name] = {"image": name, "labels": ranked}
        for i in range(start, min(start + engine.batch_size, len(source))):
            answer = answers[source.key(i)]
            ok = ok and "error" not in answer
            if args.json:
                print(json.dumps(answer, ensure_ascii=False), flush=True)
            elif "labels" in answer:
                print(
                    f"{printable(answer['image'])}: "
                    + "  ".join(f"{printable(t['label'])} {t['probability']:.1%}" for t in answer["labels"])
                )
            if "error" in answer:
                print(f"error: {printable(answer['image'])}: {printable(answer['error'])}", file=sys.stderr)
    return 0 if ok else 1
