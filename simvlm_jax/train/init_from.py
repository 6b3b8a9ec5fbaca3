"""Starting from other runs' weights."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from simvlm_jax.core.trees import path_name
from simvlm_jax.core.types import Model, TrainState
from simvlm_jax.parallel.mesh import EXTRA, Letterbook, letters_at, placement
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import tokenizer_hash
from simvlm_jax.train.state import Initialise, Taken

PIECES, ANSWERS = "V", "A"
"""Letters of axes whose entries mean something only beside a run's tokenizer, or its answer list."""


def initialiser(
    model: Model, tokenizer: str, labels: Sequence[str], sources: Sequence[Any], mesh: jax.sharding.Mesh
) -> Initialise | None:
    """`(fresh state, its letters) -> Taken`, what runs give to it; None without any source.

    tokenizer: sha256 of this run's model, which must be that of every run of which a parameter with the letter V is taken.
    labels: this run's answer list, which must be that of every run of which a parameter with the letter A is taken.

    sources: a run directory, or `{"run": directory, "step": None or a step, "map": [(regex, replacement or None)], "scale":
    [(regex, factor)]}`, in order. The first pattern of `map` found in a loaded name rewrites it; None drops it; without a match the
    name is kept. Parameters are multiplied by the factor of the first pattern of `scale` found in their name here, for models that
    scale elsewhere than their source does. Names are the
    paths of parameters, and "extra/" and the path of what stands beside them (momentum copies, queues). Position tables of
    another resolution are resized by the model. Parameters that no source names stay as initialised. Of a source's extra
    those leaves are taken that the model has too; a source without any gives none, and the model's `begin` makes it.

    Raises:
      ValueError: a loaded parameter has no place in the model, or it or a leaf of extra has another shape there; or the
        tokenizers or the answer lists differ.
    """

    sources = _records(sources)
    if not sources:
        return None

    def initialise(state: TrainState, letters: Letterbook) -> Taken:
        places = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        params, fresh, extra = flatten_dict(state.params, sep="/"), _named(state.extra), {}
        for source in sources:
            path, weights = source["run"], _load(source["run"], source.get("step"), mesh)
            origins = {k: v for k, v in _origins(weights, source).items() if not k.startswith(EXTRA) or k in fresh}
            _check_meaning(path, origins, letters, tokenizer, tuple(labels))
            taken = {k: _scaled(k, weights[v], source) for k, v in origins.items() if k not in fresh}
            loaded = _adapted(model, path, taken, state.params)
            beside = {k: weights[v] for k, v in origins.items() if k in fresh}
            _check_shapes(path, {**loaded, **beside}, {**params, **fresh})
            params.update({k: v.astype(params[k].dtype) for k, v in loaded.items()})
            extra.update({k: _like(v, fresh[k]) for k, v in beside.items()})
        placed = jax.device_put(unflatten_dict(params, sep="/"), places)
        return Taken(placed, {k.removeprefix(EXTRA): v for k, v in extra.items()})

    return initialise


def _scaled(name: str, weight: Any, source: dict[str, Any]) -> Any:
    """A loaded parameter times the factor that its source gives parameters of that name, if any."""
    factor = next((f for pattern, f in source.get("scale") or () if re.search(pattern, name)), None)
    return weight if factor is None else weight * factor


def _named(extra: Any) -> dict[str, Any]:
    """Leaves of extra by "extra/" and their path."""
    return {EXTRA + path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(extra)}


def _like(loaded: Any, fresh: Any) -> Any:
    """A loaded leaf with the dtype and in the place of a fresh one."""
    return jax.device_put(loaded if loaded.dtype == fresh.dtype else loaded.astype(fresh.dtype), fresh.sharding)


def _adapted(model: Model, path: str, loaded: dict[str, Any], target: Any) -> dict[str, Any]:
    """Loaded parameters by name, reshaped by the model where it knows how."""
    try:
        return flatten_dict(model.adapt(unflatten_dict(loaded, sep="/"), target), sep="/")
    except (ValueError, TypeError, KeyError, IndexError) as e:
        reason = str(e).partition("\n")[0]
        raise ValueError(
            f"weights of {path} do not fit this model, which is of another shape ({reason:.200}); use `map` to rename or drop "
            "some, or set the size they are of"
        ) from e


def _check_shapes(path: str, loaded: dict[str, Any], here: dict[str, Any]) -> None:
    wrong = [
        f"{k}: {v.shape} loaded, {here[k].shape if k in here else 'nothing'} in the model"
        for k, v in loaded.items()
        if k not in here or here[k].shape != v.shape
    ]
    if wrong:
        raise ValueError(f"weights of {path} do not fit; use `map` to rename or drop\n  " + "\n  ".join(wrong))


def _check_meaning(path: str, origins: dict[str, str], letters: Letterbook, tokenizer: str, labels: tuple[str, ...]):
    """Compares tokenizers where a parameter means pieces, and answer lists where one means answers.

    That is read from the letters of the parameter here as well as in the run it comes from: a run that was recorded before
    there was a letter for answers has none of them, and its heads are known by those of the model that takes them.
    """
    theirs = RunDir(path).letters()

    def meant(letter: str) -> list[str]:
        pairs = origins.items()
        return [old for new, old in pairs if letter in {*_letters(theirs, old), *_letters(letters, new)}]

    if meant(PIECES):
        _same_tokenizer(path, tokenizer)
    if heads := meant(ANSWERS):
        _same_labels(path, labels, heads)


def _letters(book: Letterbook, name: str) -> tuple[str | None, ...]:
    return letters_at(book, name) or ()


def tokenizer_of(sources: Sequence[Any]) -> Path | None:
    """The tokenizer folder of the first run of which a parameter with the letter V is taken, if any is."""
    for source in _records(sources):
        if not (Path(source["run"]).expanduser() / "config.json").is_file():
            raise FileNotFoundError(
                f"config.train.init_from names {source['run']!r}, which is not a run directory; train it first, name "
                'another ("(\'RUN\',)"), or start from nothing ("()")'
            )
        book = RunDir(source["run"]).letters() or {"embedding": (PIECES,)}  # older runs have no book, and an embedding
        names = (old for new, old in _origins(book, source).items() if not new.startswith(EXTRA))
        if any(PIECES in _letters(book, name) for name in names):
            return RunDir(source["run"]).tokenizer
    return None


def _records(sources: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"run": s} if isinstance(s, str) else dict(s) for s in sources]


def _same_tokenizer(path: str, own: str) -> None:
    folder = RunDir(path).tokenizer
    theirs = tokenizer_hash(RunDir(path))
    if theirs != own:
        raise ValueError(
            f"init_from: {path} has another tokenizer ({theirs[:12]}, here {own[:12]}), so its embedding means other "
            f"pieces; set config.text.model={folder} or drop the embedding with `map`"
        )


def _same_labels(path: str, own: tuple[str, ...], heads: Sequence[str]) -> None:
    theirs = RunDir(path).labels()
    if theirs != own:
        pattern = f"^({'|'.join(sorted(heads))})$"
        raise ValueError(
            f"init_from: {path} classifies into other answers ({len(theirs)}: {', '.join(theirs[:3])} ...; here {len(own)}: "
            f"{', '.join(own[:3])} ...), so its head means others; drop it with `map`, as in "
            f"({{'run': {path!r}, 'map': (({pattern!r}, None),)}},)"
        )


def _load(path: str, step: int | None, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Weights of a run by name, those of its extra under "extra/"."""
    checkpoints = Checkpoints(RunDir(path).checkpoints, read_only=True)
    chosen = checkpoints.latest_step() if step is None else step
    if chosen is None:
        raise FileNotFoundError(f"init_from: {path} has no checkpoint")
    params, extra = checkpoints.restore_weights(chosen, placement(mesh, RunDir(path).letters()))
    return {**flatten_dict(params, sep="/"), **_named(extra)}


def _origins(names: Iterable[str], source: dict[str, Any]) -> dict[str, str]:
    """{name here: name in the source} of what a source's `map` keeps."""
    out = {}
    for old in names:
        name: str | None = old
        for pattern, replacement in source.get("map") or ():
            if re.search(pattern, old):
                name = None if replacement is None else re.sub(pattern, replacement, old)
                break
        if name is not None:
            out[name] = old
    return out
