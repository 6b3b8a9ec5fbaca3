"""`simvlm caption RUN image ... [--prompt TEXT] [--json]`: captions for any image files."""

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Captions every readable image; returns 1 if any could not be."""
    parser = argparse.ArgumentParser(prog="simvlm caption", description="Caption images with a trained run.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument("images", nargs="+", help="image files: JPEG, PNG, WebP, GIF (first frame), BMP")
    parser.add_argument("--prompt", default="", help='how the caption begins, such as "a picture of"')
    parser.add_argument(
        "--json", action="store_true", help='one line an input: {"image", "caption"} or {"image", "error"}'
    )
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--max-length", type=int, default=0, help="pieces after the prompt (default: all there is room for)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    import numpy as np

    from simvlm_jax.data.images import BadImage, decode, resize
    from simvlm_jax.decode.sampling import Sampler
    from simvlm_jax.eval.captioning import Captioner
    from simvlm_jax.main import setup_jax
    from simvlm_jax.run.load import load_run

    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size} must be at least 1")
    sampler = Sampler(args.temperature, args.top_k, args.top_p)
    setup_jax()
    run = load_run(args.run, args.step)
    size = run.config.data.image_size
    rows = -(-min(args.batch_size, len(args.images)) // run.mesh.size) * run.mesh.size
    captioner = Captioner(run.model, run.tokenizer, run.mesh, rows, args.prompt, args.max_length, sampler, args.seed)

    ok = True
    for start in range(0, len(args.images), rows):
        names = args.images[start : start + rows]
        pixels, answers = [], {}
        for i, name in enumerate(names):
            try:
                pixels.append((i, resize(decode(_read(name), at_least=size), size)[None]))
            except (BadImage, OSError) as e:
                answers[i] = {"image": name, "error": _reason(e)}
        if pixels:
            ids = np.asarray([start + i for i, _ in pixels], np.int64)
            captions = captioner(run.params, run.extra, np.stack([p for _, p in pixels]), ids)
            for (i, _), caption in zip(pixels, captions, strict=True):
                answers[i] = {"image": names[i], "caption": caption}
        for i in range(len(names)):
            ok = _print(answers[i], args.json) and ok
    return 0 if ok else 1


def _read(name: str) -> bytes:
    path = Path(name)
    if path.is_dir():
        raise IsADirectoryError("is a directory")
    if not path.exists():
        raise FileNotFoundError("does not exist")
    return path.read_bytes()


def _reason(e: Exception) -> str:
    return e.strerror if isinstance(e, OSError) and e.strerror else str(e)


def _print(answer: dict[str, str], as_json: bool) -> bool:
    """Prints one answer; whether it is a caption."""
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    elif "caption" in answer:
        print(f"{answer['image']}: {answer['caption']}", flush=True)
    if "error" in answer:
        print(f"error: {answer['image']}: {answer['error']}", file=sys.stderr)
    return "caption" in answer
