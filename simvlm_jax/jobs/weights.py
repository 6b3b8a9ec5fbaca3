"""Weights of other people as run directories, and runs as weights that other people's programs load."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from simvlm_jax.core.files import BadFile, partial_of, write_whole
from simvlm_jax.core.trees import path_name
from simvlm_jax.core.types import Model
from simvlm_jax.interop.family import NOTHING_SAID, Family, Options, Plan, families, family_of
from simvlm_jax.interop.formats import npz, safetensors_file
from simvlm_jax.interop.formats.tensors import NoTensor
from simvlm_jax.interop.reference import Reference, compare
from simvlm_jax.interop.source import Source, open_source
from simvlm_jax.interop.table import canonical, give, stacked, take, unstacked
from simvlm_jax.run.directory import PARITY, is_run
from simvlm_jax.run.imported import check_free, config_of, write_run
from simvlm_jax.run.load import Loaded, build_model, load_run
from simvlm_jax.text.tokenizer import NoTokenizer

EXTRA = "extra/"
Log = Callable[[str], None]


def import_run(
    source: str,
    out: str,
    family: str = "",
    options: Options = NOTHING_SAID,
    outputs: bool = False,
    log: Log = lambda text: None,
) -> dict[str, Any]:
    """Makes a run directory of someone's weights, and returns what its parity.json holds.

    source: a file of weights, or a folder with one. family: by default what the source says it is. outputs: whether outputs are
    compared with those of the reference implementation too, for which torch has to be installed.

    Raises:
      ValueError: the weights do not fit the family, in one message that lists all that is wrong. FileNotFoundError,
      FileExistsError: no source, or something is at `out`.
    """
    place = Path(out).expanduser()
    check_free(place)
    try:
        opened = open_source(source)
    except FileNotFoundError as e:
        if is_run(Path(source).expanduser()):
            raise ValueError(f"{e}. If it is a run already, every command takes it, and simvlm export writes it") from e
        raise
    name, chosen = family_of(opened, family)
    plan = planned(name, chosen, opened, options)
    tokenizer = plan.tokenizer or NoTokenizer()
    config = config_of(plan.model, tokenizer, plan.pixels, plan.labels)
    model = build_model(config.model, config.data.image_size, tokenizer, plan.labels)
    table, wanted = chosen.table(opened, model), shapes_of(one_by_one(model))
    log(f"{opened.file}: {len(opened.tensors)} arrays of {name} ...")
    arrays, dropped = take(table, opened.tensors, wanted, str(opened.file))
    left_out: dict[str, list[str]] = {}
    for key, why in dropped.items():
        left_out.setdefault(why, []).append(key)
    for why, keys in left_out.items():
        log(f"left out: {keys[0]}{f' and {len(keys) - 1} others' * (len(keys) > 1)} ({why})")
    names = {key: name for name, key in canonical(table, opened.tensors).items()}
    compared = {"weights": worst(give(table, arrays), opened.tensors.renamed(names.__getitem__))}
    weights = weights_of(model, arrays)
    if outputs:
        reference = _reference(name, chosen, opened.layout)
        compared |= compare(reference, reference.load(opened.folder), model, *weights)
    report = {"family": name, "source": str(opened.file), "compared": compared, "left_out": left_out}
    write_run(place, config, model, tokenizer, plan.labels, weights, report)
    count = sum(x.size for x in arrays.values())
    log(f"{place}: {type(model).__name__} of {count:,} parameters")
    return report


def export_run(
    run: str,
    out: str,
    family: str,
    format: str = "hf",
    step: int | None = None,
    outputs: bool = False,
    log: Log = lambda text: None,
) -> dict[str, Any]:
    """Writes a run as a folder that other people's programs load, and returns what its parity.json holds.

    outputs: as in `import_run`.

    Raises:
      ValueError: the family or the format is not known, or the run's model is none of the family.
    """
    place, known = Path(out).expanduser(), families()
    check_free(place)
    if family not in known:
        raise ValueError(f"--family {family!r} is not one of {', '.join(sorted(known))}")
    chosen, loaded = known[family], load_run(run, step)
    check_exportable(family, chosen, format, loaded)
    tokenizer = None if isinstance(loaded.tokenizer, NoTokenizer) else loaded.tokenizer
    table, files, weights = chosen.write[format](loaded.model, tokenizer, loaded.labels, loaded.config.data)
    arrays = named_arrays(loaded.params, loaded.extra)
    theirs = give(table, arrays)
    own = [name for name in arrays if table.of_its_own(name) is not None]
    if own:
        log(f"left out: {own[0]}{f' and {len(own) - 1} others' * (len(own) > 1)}, for which {family} has no place")
    written = {k: x.shape for k, x in arrays.items() if k not in own}
    again = take(table, theirs, written, str(place)).arrays
    compared = {"weights": worst(again, arrays)}
    report = {"family": family, "format": format, "source": str(run), "step": loaded.step, "compared": compared}
    with _folder(place) as partial:
        _write_weights(partial / weights, theirs)
        _fill(partial, files)
        _check_whole(family, chosen, open_source(partial), loaded)
        if outputs:
            reference = _reference(family, chosen, format)
            compared |= compare(reference, reference.load(partial), loaded.model, loaded.params, loaded.extra)
        _fill(partial, {PARITY: report})
    log(f"{place}: {len(theirs)} arrays, {sum(x.size for x in theirs.values()):,} values")
    return report


def planned(name: str, family: Family, opened: Source, options: Options = NOTHING_SAID) -> Plan:
    """What a source makes.

    Raises:
      BadFile: an array is not there without which the family cannot be told. ValueError: an option says what the family has not.
    """
    try:
        plan = family.plan(opened, options)
    except NoTensor as e:
        raise BadFile(f"{opened.file} is no {name}, or not whole: it has no array {e.args[0]!r}") from e
    if plan.tokenizer is None and (options.tokenizer or options.length):
        raise ValueError(f"{name} reads no texts; leave out {'--tokenizer' if options.tokenizer else '--length'}")
    if options.labels and not plan.labels:
        raise ValueError(f"{name} has no answers to be named; leave out --labels")
    return plan


def check_exportable(name: str, family: Family, format: str, loaded: Loaded) -> None:
    """Refuses a run that a family or a format cannot take."""
    if not isinstance(loaded.model, family.model):
        able = sorted(k for k, other in families().items() if isinstance(loaded.model, other.model) and other.write)
        raise ValueError(
            f"this run is a {type(loaded.model).__name__}, and {name} is not; it can be exported as "
            f"{', '.join(able) or 'nothing that is known'}"
        )
    if format not in family.write:
        raise ValueError(f"{name} cannot be written as {format!r}; it can as {', '.join(family.write) or 'nothing'}")


def _check_whole(name: str, family: Family, opened: Source, loaded: Loaded) -> None:
    """Refuses what was written where the family reads another model of it: it has no word for something of this one.

    Raises:
      ValueError: it is another.
    """
    if opened.layout == "npz" or not opened.config:
        return
    made = planned(name, family, opened)
    tokenizer = made.tokenizer or NoTokenizer()
    if not isinstance(loaded.tokenizer, NoTokenizer) and made.tokenizer is not None:
        tokenizer = loaded.tokenizer
    labels = made.labels or loaded.labels
    again = build_model(made.model, loaded.config.data.image_size, tokenizer, labels)
    ours, theirs = (_network(m) for m in (loaded.model, again))
    if differ := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
        told = "; ".join(f"{k} is {ours.get(k)!r:.60} and would be {theirs.get(k)!r:.60}" for k in differ[:4])
        raise ValueError(f"{name} has no word for something of this run's model: {told}")


def _network(model: Any) -> dict[str, Any]:
    """What a model computes, by field: its sizes, and those of records within them."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(f"{name}.{field.name}", getattr(value, field.name))
        else:
            found[name] = value

    walk("size", model.sizes)
    return found


def one_by_one(model: Any) -> Model:
    """The model with layers one by one, whose parameters tables name."""
    return dataclasses.replace(model, compute=dataclasses.replace(model.compute, scan=False))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, and of every leaf of extra, by name."""
    params, extra = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), {}))
    leaves = jax.tree_util.tree_leaves_with_path({"": params, EXTRA[:-1]: extra})
    return {path_name(path).removeprefix("/"): tuple(x.shape) for path, x in leaves}


def weights_of(model: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """(params, extra) of a model, whose layers may be scanned, from arrays by name."""
    whole = stacked(arrays, shapes_of(model))
    params = {k: x for k, x in whole.items() if not k.startswith(EXTRA)}
    extra = {k.removeprefix(EXTRA): x for k, x in whole.items() if k.startswith(EXTRA)}
    return unflatten_dict(params, sep="/"), unflatten_dict(extra, sep="/")


def named_arrays(params: Any, extra: Any) -> dict[str, np.ndarray]:
    """Weights by name with layers one by one, in fp32."""
    flat = {**flatten_dict(params, sep="/"), **{EXTRA + k: x for k, x in flatten_dict(extra, sep="/").items()}}
    return unstacked({k: np.asarray(x, np.float32) for k, x in flat.items()})


def worst(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> float:
    """The largest difference of arrays of a name, in parts of the largest value there; arrays of one side alone are left out.

    Raises:
      ValueError: no name is on both sides, so that nothing would be compared.
    """
    if not found.keys() & expected.keys():
        raise ValueError("no array has the same name on both sides, so nothing can be compared")
    out = 0.0
    for name in found:
        if name in expected:
            a, b = found[name].astype(np.float64), np.asarray(expected[name]).astype(np.float64)
            out = max(out, float(np.abs(a - b.reshape(a.shape)).max(initial=0) / max(np.abs(b).max(initial=0), 1e-12)))
    return out


def _reference(name: str, family: Family, layout: str) -> Reference:
    if layout not in family.reference:
        known = ", ".join(family.reference) or "none"
        raise ValueError(
            f"{name} in the layout {layout!r} cannot be compared with a reference; layouts that can: {known}"
        )
    return family.reference[layout]


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """A folder to be filled, which stands at its place once it is whole."""
    place = place.absolute()
    partial = partial_of(place)
    try:
        partial.mkdir(parents=True)
        yield partial
        if place.is_dir():
            place.rmdir()
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        npz.write(path, arrays)
    else:
        safetensors_file.write(path, arrays, {"format": "pt"})


def _fill(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes files of bytes, text or JSON values; names may lead into folders."""
    for name, content in files.items():
        data = content if isinstance(content, str | bytes) else json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, data)
