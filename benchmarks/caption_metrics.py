"""How long the caption metrics take: python benchmarks/caption_metrics.py [IMAGES] > benchmarks/caption_metrics.md

One caption an image against five references, drawn from the built-in grammar; seconds of the process on one core.
"""

import sys
import time

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.language import references
from simvlm_jax.eval.metrics.caption import CiderD, bleu, rouge_l, tokenized


def main(images: int = 100_000) -> None:
    rng = np.random.default_rng(0)
    truth = [references(graph.sample_scene(rng, 1 + i % 3), rng) for i in range(images)]
    said = [truth[i][0] if i % 3 else truth[i - 1][1] for i in range(images)]
    rows, began = [], time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        rows.append((name, time.process_time() - began))
        began = time.process_time()

    hypotheses, refs = tokenized(said, truth)
    lap(f"PTB tokens of {6 * images:,} captions")
    bleu(hypotheses, refs)
    lap("BLEU-1..4")
    for h, r in zip(hypotheses, refs, strict=True):
        rouge_l(h, r)
    lap("ROUGE-L")
    CiderD(refs)(hypotheses)
    lap("CIDEr-D")
    print(f"# Caption metrics: {images:,} captions, five references each\n\nMade by benchmarks/caption_metrics.py.\n")
    print("| | seconds |\n|---|---|")
    for name, seconds in [*rows, ("all", sum(s for _, s in rows))]:
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
