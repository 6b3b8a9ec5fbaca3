"""Example i of a split, a pure function of (task, split, i, examples, size, seed); many of them, on all cores.

`python -m simvlm_jax.data.scenes.examples TASK SPLIT EXAMPLES SIZE SEED FIRST STEP` writes every STEP-th example to stdout,
pickled: the other end of `make_examples`. A process of its own needs no guard in the user's program, as spawning does.
"""

import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.data.scenes import graph, tasks
from simvlm_jax.data.scenes.graph import MAX_OBJECTS, Scene

EVEN_COUNTS = (1, 1, 2, 2, 3, 3, 4, 5)
"""Objects a scene, by the eighth of the split that it lies in."""
COUNTS = {"train": (1, 2, 3, 3, 3, 3, 4, 5)}
"""The same for splits that differ: training sees more of what is harder."""
EXAMPLES_PER_PROCESS = 500
"""Examples below which starting a process costs more than it saves."""


def object_count(split: str, index: int, examples: int) -> int:
    """Objects in example `index` of a split."""
    counts = COUNTS.get(split, EVEN_COUNTS)
    return counts[index * len(counts) // examples]


def make_example(task: str, split: str, index: int, examples: int, size: int, seed: int) -> dict[str, Any]:
    """Example `index` of a split of `examples`; pictures are `size` pixels wide, as PNG bytes."""
    rng = np.random.default_rng((seed, zlib.crc32(f"{task}/{split}".encode()), index))
    count = 1 if task == "classes" else object_count(split, index, examples)

    def draw() -> Scene:
        if task == "vqa":  # questions about numbers need scenes of every size
            return graph.sample_scene(rng, int(rng.integers(1, MAX_OBJECTS + 1)), split == "compositional")
        if task == "video":  # two of them move
            return graph.sample_scene(rng, int(rng.integers(2, 4)), split == "compositional")
        if task in ("pairs", "interleaved", "text"):  # two pictures with unlike counts must be possible
            return graph.sample_scene(rng, int(rng.integers(1, max(count, 2) + 1)), split == "compositional")
        return graph.sample_scene(rng, count, split == "compositional")

    return {"key": f"{split}-{index:06d}", **getattr(tasks, task)(rng, draw, size)}


def make_examples(
    task: str, split: str, examples: int, size: int, seed: int, processes: int | None = None
) -> Iterator[dict[str, Any]]:
    """All examples of a split in order. processes: by default one a core, as far as they are worth it."""
    if processes is None:
        processes = min(os.cpu_count() or 1, examples // EXAMPLES_PER_PROCESS, 16)
    if processes < 2:
        yield from (make_example(task, split, i, examples, size, seed) for i in range(examples))
        return
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    words = [sys.executable, "-m", __name__, task, split, *map(str, (examples, size, seed))]
    workers = [
        subprocess.Popen([*words, str(first), str(processes)], stdout=subprocess.PIPE, env=env)
        for first in range(processes)
    ]
    pipes: list[Any] = [worker.stdout for worker in workers]
    try:
        for i in range(examples):
            yield pickle.load(pipes[i % processes])
    except (EOFError, pickle.UnpicklingError) as e:
        raise ChildProcessError(
            f"a process that draws {task}/{split} ended early; see its message above, if any"
        ) from e
    finally:
        for worker, pipe in zip(workers, pipes, strict=True):
            pipe.close()
            worker.terminate()
            worker.wait()


def _write(task: str, split: str, *numbers: str) -> None:
    examples, size, seed, first, step = map(int, numbers)
    for i in range(first, examples, step):
        pickle.dump(make_example(task, split, i, examples, size, seed), sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        _write(*sys.argv[1:])
    except BrokenPipeError:  # the reader has stopped
        os._exit(1)
