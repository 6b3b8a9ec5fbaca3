"""The sample sequence of the configs, row by row in tests/golden/sequence.json: (seed, step) gives these rows and no others.

REGOLD=1 python -m pytest tests/data/test_sequence.py writes it anew, which breaks every run that is to be continued.
"""

import json
import os
import re
import zlib

import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.data import assemble
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "sequence.json"
STEPS = 4
TASKS = ("vqa", "vqa_open", "entail", "transfer", "pairs", "captions", "translate")
CONFIGS = (
    *(f"prefixlm{v}" for v in ("", ":with_text", ":packed", ":photos", ":smoke", ":base")),
    *(f"{name}{v}" for name in ("clip", "siglip", "llip") for v in ("", ":smoke", ":photos")),
    *(f"coca{v}" for v in ("", ":smoke", ":photos", ":probe", ":base")),
    *(f"finetune:{task}" for task in TASKS),
)


def small(name: str):
    """A config on few scenes, in small batches; splits and transforms are its own."""
    file, _, variant = name.partition(":")
    config = load_config(f"{ROOT / 'configs' / file}.py{':' + variant if variant else ''}")
    config.data.parts.pairs.path = re.sub(r"-.*", "", config.data.parts.pairs.path) + "-80_8_32_16"
    config.data.parts.documents.path = "scenes/text-24_8_8_8"
    if config.data.parts.documents.rows:
        config.data.parts.documents.rows = 4
    config.train.batch_size = 8
    config.text.update(vocabulary=320, length=config.text.length or 48)
    return config


def record(name: str) -> dict:
    """{part: what its rows of the first steps are}: ids and small draws as they are, texts and pictures as checksums."""
    config = small(name)
    sources = assemble.part_sources(config.data)
    tokenizer = None if name == "coca:probe" else assemble.make_tokenizer(config.text, config.data.parts, sources)
    labels = assemble.make_labels(config.data, sources)
    pipeline = assemble.make_pipeline(
        config.data, tokenizer, labels, sources, batch_size=config.train.batch_size, seed=config.seed
    )
    found: dict = {}
    for step in range(STEPS):
        for part, rows in pipeline.batch(step).items():
            for key, value in rows.items():
                found.setdefault(part, {}).setdefault(key, []).append(told(value))
    return found


def told(value: np.ndarray):
    """One-dimensional integers as they are, others as a checksum of type, shape and bytes."""
    if value.ndim == 1 and value.dtype.kind in "iu":
        return value.tolist()
    head = f"{value.dtype}{value.shape}".encode()
    return f"{zlib.crc32(head + np.ascontiguousarray(value).tobytes()):08x}"


@pytest.mark.parametrize("name", CONFIGS)
def test_sequence(name):
    found = record(name)
    if os.environ.get("REGOLD"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        lines = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted({**known, name: found}.items())]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert found == json.loads(GOLDEN.read_text())[name]
