"""`simvlm models [CONFIG ...]`: every config there is, with its parameters, its FLOPs and what its model can be asked."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2] / "configs"


def main(argv: list[str]) -> int:
    """Prints one line per config as it is counted; nothing is trained, and no weights are made."""
    parser = argparse.ArgumentParser(prog="simvlm models", description="List configs, their size, cost and abilities.")
    parser.add_argument(
        "configs", nargs="*", help="FILE.py or FILE.py:VARIANT (default: those that came with the package)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a config")
    args = parser.parse_args(argv)

    from simvlm_jax.core.build import variants_of
    from simvlm_jax.parallel.environment import setup_jax

    files = args.configs or sorted(str(p) for p in HERE.glob("*.py") if p.stem not in ("parts", "__init__"))
    if not files:
        raise ValueError(f"there is no config in {HERE}; name some, as in configs/prefixlm.py")
    setup_jax()
    names = [n for f in files for n in ([f] if ":" in f else [f"{f}:{v}".removesuffix(":") for v in variants_of(f)])]
    if not args.json:
        print(f"{'config':<38}{'model':<10}{'pixels':>7}{'parameters':>16}{'forward':>12}{'a step':>12}  can be asked")
    for name in names:
        row = describe(name)
        print(json.dumps(row) if args.json else _line(row), flush=True)
    if not args.json:
        print(
            "(forward: FLOPs of one example; a step: of a training batch, forward and backward, frozen parts forward alone)",
            file=sys.stderr,
        )
    return 0


def describe(name: str) -> dict[str, Any]:
    """{config, model, image_size, parameters, flops_an_example, flops_a_step, batch_size, capabilities} of a config."""
    import math

    import flax.linen as nn
    import jax

    from simvlm_jax.core.build import load_config
    from simvlm_jax.core.flops import model_flops
    from simvlm_jax.core.parts import parts_of
    from simvlm_jax.core.trees import match
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.data.shapes import StandIn, abstract_batch, stand_in_labels
    from simvlm_jax.run.load import build_model
    from simvlm_jax.text.tokenizer import NoTokenizer

    config: Any = load_config(name)
    text = config.text
    tokenizer: Any = NoTokenizer() if text is None else StandIn(Vocabulary(text.vocabulary, text.length or 32))
    labels = stand_in_labels(config.data.labels.size)
    model: Any = build_model(config.model, config.data.image_size, tokenizer, labels)
    batch = abstract_batch(
        config.data, tokenizer, labels, batch_size=config.train.batch_size, images=config.model.get("images", 1)
    )
    shapes = nn.unbox(jax.eval_shape(lambda key: model.init(key, batch), jax.random.key(0))[0])
    flags = match(shapes, list(config.train.trainable), True, "train.trainable")
    part, rows = parts_of(batch)[0]
    one = {part: {k: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype) for k, v in rows.items()}}
    return {
        "config": name,
        "model": type(model).__name__,
        "image_size": config.data.image_size,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
        "flops_an_example": model_flops(model, one).forward,
        "flops_a_step": float(model.train_flops(batch, flags)),
        "batch_size": config.train.batch_size,
        "capabilities": sorted(model.capabilities()),
    }


def _sides(image_size: Any) -> str:
    return str(image_size) if isinstance(image_size, int) else "x".join(map(str, image_size))


_SHOWN = ("prefill", "embed_image", "embed_text", "classify", "score_text", "features", "pair_features", "attention")


def _line(row: dict[str, Any]) -> str:
    can = ", ".join({"prefill": "write"}.get(c, c) for c in _SHOWN if c in row["capabilities"])
    cost = f"{_short(row['flops_an_example']):>12}{_short(row['flops_a_step']):>12}"
    file, _, variant = row["config"].partition(":")  # whose name may have slashes, as B/32
    name = f"{Path(file).name}:{variant}".removesuffix(":")
    return f"{name:<38}{row['model']:<10}{_sides(row['image_size']):>7}{row['parameters']:>16,}{cost}  {can}"


def _short(n: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.0f} E"
