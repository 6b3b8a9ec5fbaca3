"""What the JSON files of a run directory may hold, a type each: read in one place, checked once, before anything uses them."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from simvlm_jax.core.schema import (
    AboveZero,
    Count,
    Finite,
    NotNegative,
    Pattern,
    Positive,
    Replacement,
    Seed,
    Share,
    Sides,
)

Text = Annotated[str, Meta(max_length=10_000)]
Path = Annotated[str, Meta(min_length=1, max_length=10_000)]
"""A path of data; an empty one would be the current folder."""
Axis = Annotated[int, Meta(ge=-1, le=2**20)]


class PartSource(Struct):
    """A source of several of a part: weight is its share of the part's rows, against the others'."""

    path: Path
    split: Text = "train"
    columns: Text = ""
    truncated: bool = False
    weight: AboveZero = 1.0


class Part(Struct):
    """A part of the batches: what config.data.parts holds by name.

    path (with split, columns and truncated), or in its place several `sources` by name. rows: in a batch, 0 for none, None for
    train.batch_size. images: whether files are read as pictures with what is said of them, or as texts alone. packed: several texts
    a row (data/packing.py); chunked: texts longer than a row are several, or lose their end.
    """

    path: Path | None = None
    split: Text = "train"
    columns: Text = ""
    truncated: bool = False
    sources: dict[str, PartSource] = {}
    rows: Annotated[int, Meta(ge=0, le=2**24)] | None = None
    images: bool = True
    packed: bool = False
    chunked: bool = True
    transforms: list[dict[str, Any]] = []
    cache: bool = False


class Evaluated(Struct):
    """config.data.eval: what is evaluated."""

    path: Text | None = None
    split: Text = "validation"
    splits: dict[str, Text] = {}
    columns: Text = ""
    truncated: bool = False


class Fit(Struct):
    """config.data.fit: fields of data.fit.Fit; how "" for the ways of `whole` and of the central square."""

    how: Literal["", "whole", "shorter", "longer", "pad"] = ""
    side: Count = 0
    filter: Text = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    rounding: Literal["down", "even"] = "down"


class Labels(Struct):
    """config.data.labels: the answers of a classifier."""

    size: Count = 0
    at_least: Positive = 1


class Data(Struct):
    """config.data."""

    image_size: Sides
    parts: dict[str, Part]
    whole: bool = False
    fit: Fit | None = None
    eval: Evaluated | None = None
    labels: Labels | None = None
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    quarantine: Share = 0.05
    threads: Annotated[int, Meta(ge=1, le=4096)] = 2


class TextSection(Struct):
    """config.text."""

    model: Text | None = None
    vocabulary: Annotated[int, Meta(ge=8, le=2**24)] = 320
    length: Annotated[int, Meta(ge=0, le=2**17)] = 0
    corpus: Positive = 10_000
    spelling: Literal["", "lower", "plain", "mended", "exact"] = ""


class Mesh(Struct):
    """config.mesh: devices an axis, -1 for all that are left."""

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1


class Hosts(Struct):
    """config.hosts, in seconds."""

    patience: NotNegative = 60.0
    late: NotNegative = 30.0


class Source(Struct):
    """A run that weights are taken from."""

    run: Text
    step: Count | None = None
    map: list[tuple[Pattern, Replacement | None]] = []
    scale: list[tuple[Pattern, Finite]] = []


class Training(Struct):
    """config.train."""

    steps: Annotated[int, Meta(ge=1, lt=2**31)] = 1
    batch_size: Annotated[int, Meta(ge=1, le=2**24)] = 1
    accumulate: Annotated[int, Meta(ge=1, le=2**20)] = 1
    retries: Annotated[int, Meta(ge=0, le=1000)] = 2
    trainable: list[tuple[Pattern, bool]] = []
    init_from: list[Text | Source] = []


class Eval(Struct):
    """config.eval."""

    every: Count = 0
    examples: Count = 0
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 100
    suites: dict[str, dict[str, Any]] = {}


class Checkpoint(Struct):
    """config.checkpoint."""

    every: Count = 500
    latest: Positive = 2
    keep_every: Count = 0
    best: Text | None = None


class Log(Struct):
    """config.log."""

    every: Count = 10


class Config(Struct):
    """An experiment, as config.json keeps it and as the command line gives it; fields of older runs may be missing."""

    model: dict[str, Any]
    data: Data
    eval: Eval
    checkpoint: Checkpoint
    seed: Seed = 0
    text: TextSection | None = None
    mesh: Mesh | None = None
    hosts: Hosts | None = None
    optimizer: dict[str, Any] | None = None
    train: Training | None = None
    log: Log | None = None
    variant: str = ""


class Entry(Struct):
    """Scores of one suite on one split, or the error in their place."""

    suite: Text
    split: Text
    control: Text | None
    scores: dict[str, Finite | None]
    provenance: dict[str, Any] = {}
    remarks: list[str] = []
    error: str = ""
    intervals: dict[str, tuple[Finite, Finite]] = {}
    samples: dict[str, list[Finite]] = {}
    pictures: list[int] = []


class Results(Struct):
    """results.json, and what `simvlm eval --out` writes."""

    entries: list[Entry]
    step: Count | None = None
    trained: Count | None = None
    run: str = ""


Answers = list[str]
"""labels.json: the answers a run classifies into."""
Letters = dict[str, list[Annotated[str, Meta(max_length=8)] | None]]
"""letters.json: what the axes of every parameter mean."""
Environment = dict[str, str]
"""environment.json."""


class Row(Struct):
    """A line of metrics.jsonl; further fields are numbers."""

    step: Count
    split: Text
