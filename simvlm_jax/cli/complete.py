"""`simvlm complete RUN "a text" ... [--json]`: what a language model writes after a text, and how likely the text is."""

import argparse
import json
import sys
import zlib

from simvlm_jax.core.files import printable_lines


def main(argv: list[str]) -> int:
    """Continues every prompt."""
    parser = argparse.ArgumentParser(prog="simvlm complete", description="Continue texts with a language model.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument(
        "prompts", nargs="*", help="texts to continue; without any they are read from stdin, one per line"
    )
    parser.add_argument("--chat", action="store_true", help="each prompt is what a person says; the model answers")
    parser.add_argument("--system", default="", help="with --chat: what comes before it")
    parser.add_argument("--max-length", type=int, default=64, help="pieces after the prompt")
    parser.add_argument("--beams", type=int, default=1, help="width of the beam search (default: greedy)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 repeats become less likely")
    parser.add_argument("--no-repeat-ngram", type=int, default=0, help="no so many pieces in a row come twice")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 is greedy; above, draws depend on the text alone"
    )
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument(
        "--json",
        action="store_true",
        help='one object a prompt: {"prompt", "text", "log_likelihood"}, the last in nats of the prompt after its first piece',
    )
    args = parser.parse_intermixed_args(argv)
    if args.batch_size < 1 or args.max_length < 1:
        parser.error("--batch-size and --max-length must be at least 1")
    if args.system and not args.chat:
        parser.error("--system is a part of a chat; give --chat too")
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin]
    if not prompts or not all(prompts):
        parser.error("every prompt needs a text")

    import numpy as np

    from simvlm_jax.cli import print_cuts
    from simvlm_jax.core.schema import Seed, check
    from simvlm_jax.decode.decoding import Decoding
    from simvlm_jax.decode.sampling import Sampler
    from simvlm_jax.infer.engine import load_engine
    from simvlm_jax.parallel.environment import setup_jax

    check(args.seed, Seed, "--seed")
    how = Decoding(
        args.max_length,
        beams=args.beams,
        repetition_penalty=args.repetition_penalty,
        no_repeat_ngram=args.no_repeat_ngram,
        sampler=Sampler(args.temperature, args.top_k, args.top_p),
    )
    setup_jax()
    engine, _ = load_engine(args.run, args.step, min(args.batch_size, len(prompts)))
    texts = prompts
    if args.chat:
        before = [{"role": "system", "content": args.system}] if args.system else []
        texts = [engine.chat_of([*before, {"role": "user", "content": p}]) for p in prompts]
    ids = np.asarray([zlib.crc32(t.encode("utf-8", "surrogatepass")) for t in texts], np.int64)
    made, notes = engine.generate(None, texts, ids, how, seed=args.seed, joined=True)
    written = [hypotheses[0][0] for hypotheses in made]
    if args.json:
        for prompt, text, score in zip(prompts, written, engine.score_prompts(texts).values, strict=True):
            row = {"prompt": prompt, "text": text, "log_likelihood": round(float(score), 4)}
            print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        for prompt, text in zip(prompts, written, strict=True):
            print(printable_lines(text.strip() if args.chat else prompt + text), flush=True)
    print_cuts(notes, engine.vocabulary.length)
    return 0
