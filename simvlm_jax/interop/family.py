"""A family of weights: how a source becomes a model, and a model a source. One file a family under maps/."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simvlm_jax.core.build import spec
from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.reference import Reference
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Table
from simvlm_jax.text.tokenizer import Tokenizer


class Plan(NamedTuple):
    """What a source makes.

    model: the spec of config.model. tokenizer: None of a model that reads no text. pixels: fields of config.data that say how
    pictures are made ready. labels: the answers of a classifier.
    """

    model: ConfigDict
    tokenizer: Tokenizer | None
    pixels: Mapping[str, Any] = {}
    labels: tuple[str, ...] = ()


class Written(NamedTuple):
    """What a model is written as: a table, the files beside the weights, as JSON values by name, and the name of the weights'."""

    table: Table
    files: Mapping[str, Any]
    weights: str = "model.safetensors"


class Options(NamedTuple):
    """What a person says of a source that the source does not. tokenizer: a file or folder. length: pieces of a text, 0 for the
    model's own. labels: names of a classifier's answers."""

    tokenizer: str = ""
    length: int = 0
    labels: tuple[str, ...] = ()


NOTHING_SAID = Options()


class Family(NamedTuple):
    """A family.

    model: the class of its models. kinds: what its sources say they are (`Source.kind`). plan: what a source makes. table: the
    names of a source's arrays, for a model of that plan. write: {format: what a model, its tokenizer, its labels and its
    config.data are written as}. reference: {layout of a source, or format: how it is compared with the reference implementation}.
    """

    model: type
    kinds: tuple[str, ...]
    plan: Callable[[Source, Options], Plan]
    table: Callable[[Source, Any], Table]
    write: Mapping[str, Callable[[Any, Tokenizer | None, tuple[str, ...], Any], Written]] = {}
    reference: Mapping[str, Reference] = {}


def families() -> dict[str, Family]:
    """All families by name."""
    from simvlm_jax.interop import maps

    found: dict[str, Family] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(maps.__path__)):
        found |= importlib.import_module(f"{maps.__name__}.{module}").FAMILIES
    return found


def family_of(source: Source, name: str = "") -> tuple[str, Family]:
    """The family of that name, or by default the one that a source says it is.

    Raises:
      ValueError: there is no such family, or the source says it is of another.
    """
    known = families()
    if name and name not in known:
        raise ValueError(f"--family {name!r} is not one of {', '.join(sorted(known))}")
    claims = [k for k, family in known.items() if source.kind and source.kind in family.kinds]
    if name:
        if source.kind and source.kind not in known[name].kinds:
            mend = f"use --family {claims[0]}" if claims else "no family here is that, however alike its arrays are"
            raise ValueError(f"{source.file} says it is {source.kind!r} and no {name!r}; {mend}")
        return name, known[name]
    if not claims:
        said = f"says it is {source.kind!r}, which no family here is" if source.kind else "does not say what it is"
        raise ValueError(f"{source.file} {said}; name one with --family: {', '.join(sorted(known))}")
    return claims[0], known[claims[0]]


def of_record(module: str, record: str, **fields: Any) -> ConfigDict:
    """The spec of a record of this package, with those of its fields that are specs themselves."""
    return spec(f"simvlm_jax.{module}:{record}", **fields)


def field(config: Mapping[str, Any], name: str, *others: str, default: Any = ...) -> Any:
    """A value of someone's config, by the first of several names that is there and not null.

    Raises:
      BadFile: it is not there and has no default.
    """
    for key in (name, *others):
        if config.get(key) is not None:
            return config[key]
    if default is ...:
        raise BadFile(f"the config beside the weights has no {name!r}, which the model cannot be built without")
    return default


def whole(config: Mapping[str, Any], name: str, *others: str, default: Any = ..., least: int = 1) -> int:
    """A whole number of someone's config, positive by default; see `field`."""
    value = field(config, name, *others, default=default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadFile(
            f"the config beside the weights has {name} {value!r:.40}; expected a whole number of {least} at least"
        )
    return value
