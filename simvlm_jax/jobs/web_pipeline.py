"""`jobs.web` over many machines by Apache Beam: any runner, any file system that Beam knows, resumable part by part.

A folder `work/` beside the result holds every part as it is finished: a run that is started again reads them and does the
rest. Beam's own file systems are used throughout, so inputs and output may lie on gs:// or s3:// with Beam's extras.
"""

import argparse
import builtins
import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from simvlm_jax.core.files import BadFile
from simvlm_jax.jobs import web
from simvlm_jax.jobs.web import Part, Settings

NAME = "web"

_IN_PROCESS = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""What Beam's DirectRunner comes to, after it has tried to fetch a program from the web."""


def prepare(
    inputs: Sequence[str], out: str, settings: Settings, split: str = "train", options: Sequence[str] = ()
) -> dict[str, Any]:
    """Turns inputs (patterns of tars and tables) into a TFDS data set at `out`; gives the counts.

    options: Beam's own flags, such as --runner=DataflowRunner; without a runner, the one inside this process.

    Raises:
      ValueError: an input that is not there or cannot be read, a flag that Beam does not know, an `out` that other settings
        have begun, or nothing that is left. OSError: a file cannot be written.
    """
    matches = {pattern: [m.path for r in FileSystems.match([pattern]) for m in r.metadata_list] for pattern in inputs}
    if absent := [pattern for pattern, paths in matches.items() if not paths]:
        raise ValueError(f"no input matches {', '.join(absent)}")
    _check_options(options)
    if not any(o.partition("=")[0] == "--runner" for o in options):
        options = [*options, _IN_PROCESS]
    found = sorted({path for paths in matches.values() for path in paths})
    work = FileSystems.join(out, "work")
    _claim(FileSystems.join(work, f"{split}.settings.json"), settings, found)
    with _plain_errors(), beam.Pipeline(options=PipelineOptions(list(options))) as p:
        records = (
            p
            | "inputs" >> beam.Create(found)
            | "parts" >> beam.FlatMap(lambda name: list(_parts(name, settings)))
            | "spread" >> beam.Reshuffle()
            | "build" >> beam.Map(_build, work=work, settings=settings)
        )
        duplicates = (
            records
            | "bands" >> beam.FlatMap(lambda name: list(web.bands(_load(work, name))) if settings.near >= 0 else [])
            | "alike" >> beam.GroupByKey()
            | "near" >> beam.FlatMap(lambda group: list(web.near_duplicates(group[1], settings.near)))
            | "once" >> beam.Distinct()
        )
        both = {"part": records | beam.Map(lambda name: (name, 1)), "gone": duplicates}
        shards = both | beam.CoGroupByKey() | "write" >> beam.Map(_write, work=work)
        named = shards | "all" >> beam.combiners.ToList() | "name" >> beam.FlatMap(_named, split=split)
        copied = named | "share out" >> beam.Reshuffle() | "copy" >> beam.Map(_copied, work=work, out=out)
        _ = copied | "gather" >> beam.combiners.ToList() | "finish" >> beam.Map(_finish, out=out, split=split)
    return json.loads(_read(FileSystems.join(out, f"{split}.provenance.json")))["counts"]


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raises errors of the workers without the step and the traceback that Beam puts into them, and keeps it from logging them."""
    logger = logging.getLogger("apache_beam.runners")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as e:
        if (plain := _as_raised(e)) is None:
            raise
        raise plain from e
    finally:
        logger.setLevel(level)


def _as_raised(e: Exception) -> ValueError | OSError | None:
    """The ValueError or OSError of a worker that Beam has wrapped, with its message alone; None of other errors."""
    text, wrapped, _ = str(e).partition(" [while running ")
    if wrapped and isinstance(e, ValueError | OSError):
        return (ValueError if isinstance(e, ValueError) else OSError)(text)
    found = re.fullmatch(r"(?:\w+\.)*(\w+): (.*)", text.rpartition("\n")[2])  # of a traceback, its end
    if not wrapped or not found:
        return None
    kind = BadFile if found[1] == BadFile.__name__ else getattr(builtins, found[1], None)
    known = (k for k in (ValueError, OSError) if isinstance(kind, type) and issubclass(kind, k))
    return next((k(found[2]) for k in known), None)


def _parts(name: str, settings: Settings) -> Iterator[tuple[Part, web.Rows | None]]:
    changed = FileSystems.match([name])[0].metadata_list[0].last_updated_in_seconds or 0.0
    with _local(name) as path:
        yield from web.parts_of(path, name, settings, changed)


def _build(item: tuple[Part, web.Rows | None], work: str, settings: Settings) -> str:
    """Makes a part unless it is there; its record is written last, so what has a record is whole."""
    part, rows = item
    record_path = FileSystems.join(work, f"{part.name}.json")
    if FileSystems.exists(record_path):
        done = json.loads(_read(record_path))
        same = dataclasses.asdict(part)
        if {k: done[k] for k in same} == same and done["settings"] == _plain(settings):
            return part.name
    if rows is None:
        with _local(part.input) as path:
            examples, record = web.build(part, web.tar_samples(part, path), settings)
    else:
        samples = web.table_samples(part, rows, part.input.rpartition("/")[0] or ".", settings)
        examples, record = web.build(part, samples, settings)
    _upload(examples, FileSystems.join(work, f"{part.name}.array_record"))
    _write_whole(record_path, json.dumps(record))
    return part.name


def _write(item: tuple[str, dict[str, Any]], work: str) -> dict[str, Any]:
    """The shard of a part without its near duplicates."""
    name, groups = item
    gone, part = sorted(groups["gone"]), _load(work, name)
    done_path = FileSystems.join(work, f"{name}.shard.json")
    made_of = hashlib.sha256(json.dumps([gone, part]).encode()).hexdigest()
    if FileSystems.exists(done_path):
        done = json.loads(_read(done_path))
        if done["of"] == made_of:
            return done["record"]
    with _local(FileSystems.join(work, f"{name}.array_record")) as path:
        examples, record = web.without(web.read_records(path), part, set(gone))
    _upload(examples, FileSystems.join(work, f"{name}.shard"))
    _write_whole(done_path, json.dumps({"of": made_of, "record": record}))
    return record


def _named(records: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The records of parts, in order; those with examples with the names of their shards."""
    ordered = sorted(records, key=lambda r: (r["input"], r["start"]))
    total = sum(r["out"] > 0 for r in ordered)
    for i, r in enumerate(r for r in ordered if r["out"]):
        r["shard"] = f"{NAME}-{split}.array_record-{i:05d}-of-{total:05d}"
    return ordered


def _copied(record: dict[str, Any], work: str, out: str) -> dict[str, Any]:
    """Puts a shard where it belongs."""
    if "shard" in record:
        with _local(FileSystems.join(work, f"{record['part']}.shard")) as path:
            _write_whole(FileSystems.join(out, record["shard"]), path.read_bytes())
    return record


def _finish(records: list[dict[str, Any]], out: str, split: str) -> None:
    """TFDS gets its metadata, and people the provenance of every shard."""
    import tensorflow_datasets as tfds

    counts = web.totals(records)
    full = sorted((r for r in records if "shard" in r), key=lambda r: r["shard"])
    if not full:
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts["dropped"].items()))
        raise ValueError(
            f"nothing is left of {counts['in']:,} rows for {out} ({dropped}); mend the input or ask for less"
        )
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(out), dataset_name=NAME, split=split, filetype_suffix="array_record"
    )
    lengths, size = [r["out"] for r in full], sum(r["bytes"] for r in full)
    info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
    others = []
    if FileSystems.exists(FileSystems.join(out, "dataset_info.json")):  # other splits prepared before
        before = tfds.builder_from_directory(out).info.splits
        others = [s for name, s in before.items() if name != split]
    try:
        tfds.folder_dataset.write_metadata(
            data_dir=out, features=web.make_features(), split_infos=[*others, info], check_data=False,
            description="Pictures and captions, prepared by simvlm data web.",
        )  # fmt: skip
    except OSError as e:
        raise _not_written(out, e) from e
    provenance = {"counts": counts, "shards": full, "parts_without_examples": [r for r in records if not r["out"]]}
    _write_whole(FileSystems.join(out, f"{split}.provenance.json"), json.dumps(provenance, indent=1))
    begun = FileSystems.match([FileSystems.join(out, f"{NAME}-{split}.*.partial")])[0].metadata_list
    FileSystems.delete([m.path for m in begun])  # by workers that were killed


def _claim(path: str, settings: Settings, inputs: list[str]) -> None:
    """Notes the settings of a folder; those of an earlier run must be the same."""
    mine = _plain(settings)
    if FileSystems.exists(path):
        theirs = json.loads(_read(path))["settings"]
        if changed := [f"{k} {theirs.get(k)} (now {v})" for k, v in mine.items() if theirs.get(k) != v]:
            raise ValueError(
                f"{path} was begun with other settings: {', '.join(changed)}; take those, use another --out, or remove the "
                "folder it is in"
            )
    _write_whole(path, json.dumps({"settings": mine, "inputs": inputs}))


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _check_options(options: Sequence[str]) -> None:
    parser: Any = argparse.ArgumentParser(allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    if unknown := parser.parse_known_args(list(options))[1]:
        raise ValueError(f"neither simvlm data web nor Beam knows {' '.join(unknown)}; see simvlm data web --help")


def _load(work: str, name: str) -> dict[str, Any]:
    return json.loads(_read(FileSystems.join(work, f"{name}.json")))


@contextlib.contextmanager
def _local(name: str) -> Iterator[Path]:
    """A file where it lies, or a copy of it on this machine."""
    if "://" not in name:
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name.rpartition("/")[2]
        path.write_bytes(_read(name))
        yield path


def _upload(examples: list[bytes], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        web.write_records(path, examples)
        _write_whole(name, path.read_bytes())


def _read(name: str) -> bytes:
    with FileSystems.open(name, compression_type="uncompressed") as f:
        return f.read()


def _write_whole(name: str, data: bytes | str) -> None:
    """Writes a file so that a reader sees all of it or none.

    Raises:
      OSError: it cannot be written; the message names the file.
    """
    partial = f"{name}.{secrets.token_hex(4)}.partial"  # a bundle may run twice at once
    with contextlib.suppress(OSError):  # it is there
        FileSystems.mkdirs(name.rpartition("/")[0])
    try:
        with FileSystems.create(partial, compression_type="uncompressed") as f:
            f.write(data if isinstance(data, bytes) else data.encode())
        if "://" in name and FileSystems.exists(name):  # not every store replaces a file by renaming another
            FileSystems.delete([name])
        FileSystems.rename([partial], [name])
    except OSError as e:
        with contextlib.suppress(Exception):
            FileSystems.delete([partial])
        raise _not_written(name, e) from e


def _not_written(name: str, e: OSError) -> OSError:
    return OSError(f"{name} could not be written ({e.strerror or e}); free some space or name another place")
