"""Starting from other runs' weights."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from simvlm_jax.core.types import Model, TrainState
from simvlm_jax.parallel.mesh import placement
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import tokenizer_hash

HEAD = "(^|/)(probe_head/|head_)"
"""Of parameters that mean answers."""


def initialiser(
    model: Model, tokenizer: str, labels: Sequence[str], sources: Sequence[Any], mesh: jax.sharding.Mesh
) -> Callable[[TrainState], TrainState] | None:
    """`state -> state` with parameters taken from runs, None without any; the optimizer's state is left to the caller.

    tokenizer: sha256 of this run's model, which must be that of every run whose embedding is taken. labels: this run's
    answer list, which must be that of every run whose head is taken.

    sources: a run directory, or `{"run": directory, "step": None or a step, "map": [(regex, replacement or None)]}`, in
    order. The first pattern found in a loaded parameter's path rewrites it; None drops it; without a match the path is kept. Position
    tables of another resolution are resized by the model. Parameters no source names stay as initialised.

    Raises:
      ValueError: a loaded parameter has no place in the model, or another shape there; or the tokenizers or the answer
        lists differ.
    """

    sources = _records(sources)
    if not sources:
        return None

    def initialise(state: TrainState) -> TrainState:
        places = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        params = flatten_dict(state.params, sep="/")
        for source in sources:
            loaded = _renamed(_load(source["run"], source.get("step"), mesh), source.get("map") or ())
            if any("embedding" in name for name in loaded):
                _same_tokenizer(source["run"], tokenizer)
            if any(re.search(HEAD, name) for name in loaded):
                _same_labels(source["run"], tuple(labels))
            try:
                loaded = flatten_dict(model.adapt(unflatten_dict(loaded, sep="/"), state.params), sep="/")
            except (ValueError, TypeError, KeyError, IndexError) as e:
                told = str(e).partition("\n")[0]
                raise ValueError(
                    f"weights of {source['run']} do not fit this model, which is of another shape ({told:.200}); use `map` to "
                    "rename or drop some, or set the size they are of"
                ) from e
            wrong = [
                f"{k}: {v.shape} loaded, {params[k].shape if k in params else 'nothing'} in the model"
                for k, v in loaded.items()
                if k not in params or params[k].shape != v.shape
            ]
            if wrong:
                raise ValueError(
                    f"weights of {source['run']} do not fit; use `map` to rename or drop\n  " + "\n  ".join(wrong)
                )
            params.update({k: v.astype(params[k].dtype) for k, v in loaded.items()})
        return state._replace(params=jax.device_put(unflatten_dict(params, sep="/"), places))

    return initialise


def tokenizer_of(sources: Sequence[Any]) -> Path | None:
    """The tokenizer folder of the first run whose embedding is taken, if any is."""
    for source in _records(sources):
        if not (Path(source["run"]).expanduser() / "config.json").is_file():
            raise FileNotFoundError(
                f"config.train.init_from names {source['run']!r}, which is not a run directory; train it first, name "
                'another ("(\'RUN\',)"), or start from nothing ("()")'
            )
        names = _renamed(dict.fromkeys(RunDir(source["run"]).letters() or ("embedding",)), source.get("map") or ())
        if any("embedding" in name for name in names):
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


def _same_labels(path: str, own: tuple[str, ...]) -> None:
    theirs = RunDir(path).labels()
    if theirs != own:
        raise ValueError(
            f"init_from: {path} classifies into other answers ({len(theirs)}: {', '.join(theirs[:3])} ...; here {len(own)}: "
            f"{', '.join(own[:3])} ...), so its head means others; drop it with `map`, as in "
            f"({{'run': {path!r}, 'map': (({HEAD!r}, None),)}},)"
        )


def _load(path: str, step: int | None, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    checkpoints = Checkpoints(RunDir(path).checkpoints, read_only=True)
    chosen = checkpoints.latest_step() if step is None else step
    if chosen is None:
        raise FileNotFoundError(f"init_from: {path} has no checkpoint")
    place = placement(mesh, RunDir(path).letters())
    return flatten_dict(checkpoints.restore_weights(chosen, place)[0], sep="/")


def _renamed(params: dict[str, Any], rules: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    out = {}
    for name, value in params.items():
        for pattern, replacement in rules:
            if re.search(pattern, name):
                name = None if replacement is None else re.sub(pattern, replacement, name)
                break
        if name is not None:
            out[name] = value
    return out
