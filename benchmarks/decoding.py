"""How fast captions are made: python benchmarks/decoding.py [SIZE] [IMAGES] [BATCH] > benchmarks/decoding.md

Greedy, sampled and by beam search, with the cache, and greedy without it (the decoder reads all that was written at every
step, the encoder once); captions of a fixed length, best of three rounds, side by side in one run.
"""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import unbox

from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.run.load import build_model

LENGTH = 24


class _Tokenizer:
    vocabulary = Vocabulary(320, LENGTH)


def uncached(model):
    """`prefill` and `extend` that remember pieces alone and read everything again, image included, for each new one."""
    T, bos = LENGTH, _Tokenizer.vocabulary.bos

    def logits(params, cache):
        rows = jnp.arange(len(cache["n"]))
        batch = {
            "image": cache["image"],
            "text": cache["said"],
            "text_mask": jnp.arange(T) <= cache["n"][:, None],
            "prefix_length": jnp.zeros_like(cache["n"]),
        }
        out = model.network.apply({"params": params}, batch, model.layout(batch), method="teacher_forced")
        return out[rows, cache["n"]]

    def prefill(params, extra, batch, length):
        B = len(batch["image"])
        cache = {"image": batch["image"], "said": jnp.full((B, T), bos), "n": jnp.zeros((B,), jnp.int32)}
        return logits(params, cache), cache

    def extend(params, extra, cache, tokens):
        rows = jnp.arange(len(tokens))
        said = cache["said"].at[rows, cache["n"]].set(tokens[:, 0])
        cache = {**cache, "said": said, "n": jnp.minimum(cache["n"] + 1, T - 1)}
        return logits(params, cache)[:, None], cache

    return {"prefill": prefill, "extend": extend}


def main(size: str = "tiny", images: int = 64, batch: int = 32) -> None:
    config = load_config("configs/prefixlm.py")
    config.model.size = size
    model = build_model(config.model, config.data.image_size, _Tokenizer())
    side = config.data.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (images, 1, side, side, 3), dtype=np.uint8)
    text = np.zeros((1, LENGTH), np.int32)
    rows = {"text": text, "text_mask": text == 0, "prefix_length": np.zeros(1, np.int32), "image": pixels[:1]}
    params = unbox(jax.jit(model.init)(jax.random.key(0), rows)[0])
    fixed = Decoding(max_length=LENGTH, min_length=LENGTH - 1)
    cached, plain = model.capabilities(), uncached(model)
    cases = {
        "greedy, without a cache": (plain, fixed),
        "greedy": (cached, fixed),
        "sampled, nucleus 0.9": (cached, dataclasses.replace(fixed, sampler=Sampler(1.0, top_p=0.9))),
        "beam 4": (cached, dataclasses.replace(fixed, beams=4)),
        "beam 4, no repeated 3-gram": (cached, dataclasses.replace(fixed, beams=4, no_repeat_ngram=3)),
    }
    print(f"# Captions a second: {size}, {side} px, {LENGTH} pieces, batches of {batch}\n")
    print(f"Made by benchmarks/decoding.py on {jax.device_count()} x {jax.devices()[0].device_kind}.\n")
    print("| | captions/s | times as fast |\n|---|---|---|")
    first = None
    for name, (able, how) in cases.items():
        run = jax.jit(
            lambda p, x, able=able, how=how: generate(
                able,
                p,
                {},
                {"image": x, "text": jnp.zeros((len(x), 0), jnp.int32), "text_mask": jnp.zeros((len(x), 0), bool)},
                vocabulary=_Tokenizer.vocabulary,
                decoding=how,
            )
        )
        jax.block_until_ready(run(params, pixels[:batch]))
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for i in range(0, images, batch):
                jax.block_until_ready(run(params, pixels[i : i + batch]))
            best = min(best, time.perf_counter() - began)
        first = first or images / best
        print(f"| {name} | {images / best:.1f} | {images / best / first:.2f} |", flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*words[:1], *map(int, words[1:]))
