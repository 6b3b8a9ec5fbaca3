"""`simvlm data show | prepare | tokenizer | inspect | web | capfilt`: what training needs on disk, and what it will see."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from simvlm_jax.cli import capfilt_data, inspect_data, show_data, web_data


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simvlm data", description="Data sets and tokenizers.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="render the built-in scenes into TFDS_DATA_DIR")
    prepare.add_argument(
        "name",
        nargs="+",
        help="captions, vqa, text, noisy, interleaved, entail, pairs, video, translate or classes; variants such as "
        "captions-112px, vqa-seed1, classes-1000_50_200_50 (examples a split)",
    )
    prepare.add_argument("--json", action="store_true", help="one line a data set: {name, path, splits}")
    tokenizer = commands.add_parser("tokenizer", help="train a sentencepiece model on a data set's texts")
    tokenizer.add_argument(
        "path", help="a .txt, one document per line, a table of texts, or any data set that has captions"
    )
    tokenizer.add_argument("--out", required=True, help="the folder to write tokenizer.model and contract.json to")
    tokenizer.add_argument("--split", help="the split to read (default: train, or the only one there is)")
    tokenizer.add_argument("--vocabulary", type=int, default=32_000)
    tokenizer.add_argument("--length", type=int, default=256, help="text length of the runs that will use it")
    tokenizer.add_argument("--json", action="store_true")
    show_data.add_arguments(commands.add_parser("show", help="what a path is understood as, and its rows"))
    inspect_data.add_arguments(commands.add_parser("inspect", help="print a training batch as a person reads it"))
    web_data.add_arguments(
        commands.add_parser("web", help="clean lists or tars of web pictures into a data set (Beam)")
    )
    capfilt_data.add_arguments(
        commands.add_parser("capfilt", help="write captions of a data set's pictures, and drop texts that do not match")
    )
    args, rest = parser.parse_known_args(argv)
    if args.command == "web":
        return web_data.prepare(args, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    commands_by_name = {
        "prepare": _prepare,
        "tokenizer": _tokenizer,
        "inspect": inspect_data.inspect,
        "show": show_data.show,
        "capfilt": capfilt_data.capfilt,
    }
    return commands_by_name[args.command](args)


def _prepare(args) -> int:
    from simvlm_jax.data.scenes.builder import prepare

    for name in args.name:
        builder = prepare(name)
        splits = {k: split.num_examples for k, split in builder.info.splits.items()}
        if args.json:
            print(json.dumps({"name": name, "path": str(builder.data_path), "splits": splits}), flush=True)
        else:
            print(f"{name}: {builder.data_path} ({', '.join(f'{k} {n}' for k, n in splits.items())})", flush=True)
    return 0


def _tokenizer(args) -> int:
    from simvlm_jax.data.assemble import texts_of
    from simvlm_jax.data.source import without_pictures
    from simvlm_jax.run.directory import not_of_a_run
    from simvlm_jax.text.tokenizer import CONTRACT, Tokenizer

    not_of_a_run(Path(args.out) / CONTRACT)
    source = _texts(args.path, args.split)
    texts, bad = [], 0
    for i in range(len(source)):
        try:
            texts += texts_of(without_pictures(source, i))
        except Exception as e:  # one bad item must not cost the rest
            bad += 1
            print(f"left out {source.key(i)}: {e}", file=sys.stderr)
    if not texts:
        raise ValueError(f"{args.path!r} holds no texts to train on")
    made = Tokenizer.train(texts, args.vocabulary, args.length)
    made.save(args.out)
    if args.json:
        print(json.dumps(made.contract()))
    else:
        print(f"{made.vocabulary.size} pieces from {len(texts)} texts in {args.out}; {bad} examples left out")
        print(f"train with it: --config.text.model={args.out}")
    return 0


def _texts(path: str, split: str | None) -> Any:
    """A data set with pictures, or else documents alone: a .txt, or tables that name no pictures."""
    from simvlm_jax.data.readers import flickr
    from simvlm_jax.data.sources import open_one_split

    if path.lower().endswith(".txt") and Path(path).expanduser().is_file():
        return open_one_split(path, split, images=bool(flickr.kind_of(Path(path).expanduser())))
    try:
        return open_one_split(path, split)
    except ValueError as first:
        try:
            return open_one_split(path, split, images=False)
        except (ValueError, OSError):
            raise first from None
