"""Images a second that the input pipeline makes: python benchmarks/pipeline.py [STEPS]

1,000 JPEG pictures of 375 x 500 pixels in a tar go through the transforms of `configs/prefixlm.py:photos` in batches of 64, on two
threads, as in training. To compare two states of the code, run it in each checkout in turn.
"""

import io
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path.cwd()))


def pictures(path: Path, count: int = 1000) -> None:
    """A tar of smooth pictures, which take as long to decode as photographs, with a caption each."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 255, (25, 33, 3), dtype=np.uint8))
            out = io.BytesIO()
            small.resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
            text = json.dumps({"captions": [f"a picture of number {i}", f"picture {i}"]}).encode()
            for name, data in ((f"{i:04d}.jpg", out.getvalue()), (f"{i:04d}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def main(steps: int = 60) -> None:
    from simvlm_jax.core.build import load_config
    from simvlm_jax.data import assemble

    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder) / "train-0000.tar")
        config = load_config("configs/prefixlm.py:photos")
        config.data.parts.pairs.path = str(Path(folder) / "train-0000.tar")
        began = time.perf_counter()
        sources = assemble.part_sources(config.data)
        tokenizer = assemble.make_tokenizer(config.text, config.data.parts, sources)
        ready = time.perf_counter() - began
        pipeline = assemble.make_pipeline(
            config.data, tokenizer, (), sources, batch_size=config.train.batch_size, seed=config.seed
        )
        pipeline.batch(0)
        began = time.perf_counter()
        made = sum(len(b["image"]) for b in pipeline.iterate(1, steps + 1, threads=2))
        took = time.perf_counter() - began
    print(f"{made / took:.0f} images/s ({made} in {took:.1f} s), opened and a tokenizer made in {ready:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
