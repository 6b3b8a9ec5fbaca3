"""The TFDS builder of `scenes`: array_record files, no TensorFlow, no download.

Scenes are stored in order of their object count, so the slice with one to three objects is `train[:75%]` and nothing is
rendered twice. Example i of a split depends only on (seed, split, i).

Splits: train, validation, test, and compositional, whose scenes hold a (colour, shape) pair never seen in the others.
"""

import contextlib
import dataclasses
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from simvlm_jax.core.lock import turn
from simvlm_jax.data.scenes import graph, tasks
from simvlm_jax.data.scenes.examples import EVEN_COUNTS, make_examples

SPLITS = {"train": 20_000, "validation": 400, "test": 1_200, "compositional": 400}
TEXT_SPLITS = {"train": 5_000, "validation": 240, "test": 240, "compositional": 240}
_TEXT = tfds.features.Text()


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """`size`: image side in pixels. `seed`: of all that is drawn. `sizes`: examples a split (multiples of 8)."""

    size: int = 64
    seed: int = 0
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict(SPLITS))


def _features(task: str, size: int) -> dict[str, Any]:
    image = tfds.features.Image(shape=(size, size, 3), encoding_format="png")
    images = tfds.features.Sequence(image)
    return {
        "captions": {"image": image, "captions": tfds.features.Sequence(_TEXT), "scene": _TEXT},
        "vqa": {"image": image, "question": _TEXT, "answer": _TEXT, "kind": _TEXT, "scene": _TEXT},
        "text": {"text": _TEXT},
        "noisy": {"image": image, "caption": _TEXT, "truth": _TEXT, "scene": _TEXT},
        "interleaved": {"images": images, "text": _TEXT, "scenes": tfds.features.Sequence(_TEXT)},
        "entail": {
            "image": image,
            "hypothesis": _TEXT,
            "label": tfds.features.ClassLabel(names=tasks.ENTAILMENT),
            "curtain": _TEXT,
            "scene": _TEXT,
        },
        "pairs": {
            "images": images,
            "sentence": _TEXT,
            "label": tfds.features.Scalar(np.bool_),
            "scenes": tfds.features.Sequence(_TEXT),
        },
        "video": {
            "images": images,
            "captions": tfds.features.Sequence(_TEXT),
            "question": _TEXT,
            "answer": _TEXT,
            "kind": _TEXT,
            "moves": _TEXT,
            "scenes": tfds.features.Sequence(_TEXT),
        },
        "translate": {"image": image, "source": _TEXT, "target": _TEXT, "scene": _TEXT},
        "classes": {"image": image, "label": tfds.features.ClassLabel(names=graph.CLASSES), "scene": _TEXT},
    }[task]


TASKS = ("captions", "vqa", "text", "noisy", "interleaved", "entail", "pairs", "video", "translate", "classes")
SMALL = {"text": TEXT_SPLITS, "video": {"train": 2_000, "validation": 80, "test": 400, "compositional": 80}}
"""Splits of tasks that are smaller than the others."""


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Rendered scenes with an exact scene graph, one builder config a task."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {
        "1.2.0": "text: the sentences of a document are about one scene",
        "1.1.0": "vqa, pairs and entail: the text alone gives no answer away",
        "1.0.0": "the first",
    }
    BUILDER_CONFIGS = [ScenesConfig(name=task, sizes=dict(SMALL.get(task, SPLITS))) for task in TASKS]

    def _info(self) -> tfds.core.DatasetInfo:
        task = self.builder_config.name.split("-")[0]
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"key": _TEXT, **_features(task, self.builder_config.size)}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.builder_config.sizes}

    def _generate_examples(self, split: str):
        config = self.builder_config
        made = make_examples(config.name.split("-")[0], split, config.sizes[split], config.size, config.seed)
        for i, example in enumerate(made):
            for name in {"image", "images"} & set(example):
                value = example[name]
                example[name] = [io.BytesIO(v) for v in value] if isinstance(value, list) else io.BytesIO(value)
            yield i, example


_NAME = re.compile(r"(?P<task>[a-z]+)(-(?P<size>\d+)px)?(-seed(?P<seed>\d+))?(-(?P<sizes>\d+(_\d+){3}))?", re.ASCII)
SIDES, SEEDS, EXAMPLES = (8, 1024), (0, 2**32 - 1), (0, 2**24)
"""The least and the most that a name may ask for: pixels a side, a seed, examples a split."""


def builder(name: str = "captions", data_dir: str | None = None) -> Scenes:
    """The builder behind a name: TASK[-SIZEpx][-seedSEED][-TRAIN_VALIDATION_TEST_COMPOSITIONAL], in that order.

    "captions" is the default; "captions-112px" has larger pictures, "vqa-seed1-80_8_40_8" another seed and fewer
    examples. Variants lie side by side on disk.

    Raises:
      ValueError: no such task, or a number out of its limits; examples come in multiples of 8.
    """
    parts = _NAME.fullmatch(name)
    if parts is None or parts["task"] not in TASKS:
        raise ValueError(
            f"scenes has no {name!r}; a name is TASK[-SIZEpx][-seedSEED][-TRAIN_VALIDATION_TEST_COMPOSITIONAL] "
            f"with a task of {', '.join(TASKS)}"
        )
    if name in TASKS:
        return Scenes(config=name, data_dir=data_dir, file_format="array_record")
    size = _number(name, "a picture's side in pixels", parts["size"] or "64", SIDES)
    seed = _number(name, "a seed", parts["seed"] or "0", SEEDS)
    counts = [
        _number(name, "a split's number of examples", n, EXAMPLES) for n in (parts["sizes"] or "").split("_") if n
    ]
    sizes = dict(zip(SPLITS, counts, strict=True)) if counts else dict(SPLITS)
    if bad := {k: v for k, v in sizes.items() if v < len(EVEN_COUNTS) or v % len(EVEN_COUNTS)}:
        raise ValueError(f"scenes split sizes {bad} are not positive multiples of {len(EVEN_COUNTS)}")
    config = ScenesConfig(name=name, size=size, seed=seed, sizes=sizes)
    return Scenes(config=config, data_dir=data_dir, file_format="array_record")


def _number(name: str, what: str, digits: str, limits: tuple[int, int]) -> int:
    """The number of a builder's name.

    Raises:
      ValueError: it is out of its limits.
    """
    least, most = limits
    if len(digits) > 12 or not least <= int(digits) <= most:
        raise ValueError(f"scenes/{name:.80}: {what} is {digits:.40}; it must be between {least:,} and {most:,}")
    return int(digits)


def prepare(name: str = "captions", data_dir: str | None = None) -> Scenes:
    """The builder behind a name with its files on disk, prepared on first use, by one process while others wait.

    Raises:
      OSError: they cannot be written; the message names the folder.
    """
    made = builder(name, data_dir)
    folder = Path(made.data_path)
    if (folder / "dataset_info.json").is_file():
        return builder(name, data_dir)  # anew, for it reads what is there when it is made

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with turn(folder.parent.with_name(f".{folder.parent.name}.lock"), log) as alone:
            if (folder / "dataset_info.json").is_file():  # another process has made it in the meantime
                return builder(name, data_dir)
            for left in folder.parent.glob("incomplete.*") if alone else ():  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with contextlib.redirect_stdout(sys.stderr):  # TFDS talks on stdout, which belongs to commands with --json
                made.download_and_prepare()
    except OSError as e:
        raise OSError(
            f"scenes/{name} could not be prepared in {folder.parent} ({e.strerror or e}); free some space, or set TFDS_DATA_DIR"
        ) from e
    return made
