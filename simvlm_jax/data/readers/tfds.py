"""Prepared TFDS data sets in array_record form; `scenes` is prepared on first use. TensorFlow is never loaded.

A features.json may name none but TFDS's own feature classes: TFDS would import whatever module it names.
"""

import os
import re
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import BadFile, read_json
from simvlm_jax.data.reader import How
from simvlm_jax.data.rows import Understood
from simvlm_jax.data.splits import NoSuchSplit
from simvlm_jax.data.tables import texts
from simvlm_jax.text.tokenizer import clean

_OWN = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+")


class TfdsSource:
    """A prepared TFDS data set in array_record form; `scenes` is prepared on first use. TensorFlow is never loaded."""

    def __init__(self, name: str, split: str):
        import tensorflow_datasets as tfds

        if name.split("/")[0] == "scenes":
            from simvlm_jax.data.scenes.builder import prepare

            builder = prepare(name.partition("/")[2] or "captions")
        else:
            builder = _prepared(name)
        if builder.info.file_format.value != "array_record":
            raise ValueError(f"TFDS data set {name!r} is {builder.info.file_format.value}; prepare it as array_record")
        features = builder.info.features
        raw_features: Any = features
        skip = tfds.decode.SkipDecoding()
        raw = {k: skip for k, f in features.items() if isinstance(f, tfds.features.Image)}
        raw |= {k: _skipped(f) for k, f in features.items() if k not in raw and _holds_image(f)}
        self._labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
        try:
            self._records: Any = builder.as_data_source(split, decoders=raw or None)  # pyright: ignore[reportCallIssue]
        except ValueError as e:
            raise NoSuchSplit(
                f"TFDS data set {name!r} has no split {split!r}; it has {list(builder.info.splits)}"
            ) from e
        self._path, self._name, self.split = name, f"{name}/{split}", split
        whole = builder.info.splits
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(whole)  # None: from the start, to the end
        self._slices = [(p.splitname, range(whole[p.splitname].num_examples)[p.from_ : p.to]) for p in parts]
        self._fingerprint = f"{name}:{builder.version}:{split}"
        self.understood = Understood(f"TFDS data set {name}", [], len(self._records), sorted(raw_features), split)

    def __len__(self):
        return len(self._records)

    def key(self, index: int) -> str:
        return f"{self._name}/{index}"

    def origin(self, index: int) -> str:
        """The example's name in the whole of its split, whatever slice it was reached by."""
        for name, rows in self._slices:
            if index < len(rows):
                return f"{self._path}/{name}/{rows[index]}"
            index -= len(rows)
        raise IndexError(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        example = {k: clean(v) if isinstance(v, bytes) and k != "image" else v for k, v in record.items()}
        example.setdefault("key", self.key(index))
        for name in ("captions", "caption"):
            if name in record:
                example["captions"] = texts(record[name])
        for name, feature in self._labels.items():
            example[name] = feature.int2str(int(record[name]))
        return example

    def __repr__(self):
        return self._fingerprint


def _holds_image(feature: Any) -> bool:
    """Whether pictures lie in a feature: TFDS would open them by whatever Pillow finds fit."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image | tfds.features.Video):
        return True
    if isinstance(feature, tfds.features.Sequence | tfds.features.Dataset):
        return _holds_image(feature.feature)
    return isinstance(feature, tfds.features.FeaturesDict) and any(map(_holds_image, feature.values()))


def _skipped(feature: Any) -> Any:
    """A decoder that leaves the pictures of a feature encoded.

    Raises:
      BadFile: they lie too deep for that.
    """
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Image):
        return _encoded()
    raise BadFile(
        f"a feature of kind {type(feature).__name__} holds pictures in a place that is not read; flatten the data set"
    )


def _encoded() -> Any:
    """A decoder that gives a sequence's pictures as they lie in the file, which TFDS's own gives for one picture alone."""
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, serialized_example):
            return list(serialized_example)

    return Encoded()


def _prepared(name: str) -> Any:
    """The TFDS builder of files on disk, without the data set's own code, which may want TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    try:
        if Path(name).is_dir():
            check_features(Path(name))
            return tfds.builder_from_directory(name)
        bare, kwargs = naming.parse_builder_name_kwargs(name)
        folder = tfds.core.read_only_builder._find_builder_dir(str(bare), **kwargs)
        if folder is None:
            raise FileNotFoundError(name)
        check_features(Path(folder))
        return tfds.builder_from_directory(folder)
    except BadFile:
        raise
    except Exception as e:  # TFDS raises many kinds, and lists hundreds of names
        place = os.environ.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)
        raise FileNotFoundError(
            f"path {name!r} is neither a file or folder here nor a TFDS data set prepared in {place}; "
            "name a .tar, a folder, a table, or prepare the data set (file_format array_record)"
        ) from e


def accepts(path: Path, how: How) -> str:
    """The file by which a folder is known to be a prepared data set, else ""."""
    prepared = (path / "dataset_info.json").is_file() and (path / "features.json").is_file()
    return "dataset_info.json" if prepared else ""


def read(path: Path, how: How) -> "TfdsSource":
    """The split of a prepared data set."""
    return TfdsSource(str(path), how.split)


def check_features(folder: Path) -> None:
    """Refuses a data set that names classes which are not TFDS's own.

    Raises:
      BadFile: it does, or its features.json is no JSON.
    """
    path = folder / "features.json"
    level = [read_json(path)] if path.is_file() else []
    while level:
        for value in level:
            for key in ("pythonClassName", "python_class_name", "type") if isinstance(value, dict) else ():
                named = value.get(key)
                if isinstance(named, str) and (key != "type" or "." in named) and not _OWN.fullmatch(named):
                    raise BadFile(
                        f"{path} names the feature class {named!r}; only those of tensorflow_datasets.core.features are loaded"
                    )
        level = [
            v
            for x in level
            for v in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else ())
            if v is not None
        ]
