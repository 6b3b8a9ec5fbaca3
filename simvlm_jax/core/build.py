"""Configs name constructors; `build` calls them. One loader for the entry point, the commands and the tests."""

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

TARGET = "target"
"""The field of a spec that names its constructor, "package.module:Name"."""


def spec(target: str, **kwargs: Any) -> ConfigDict:
    """A constructor by its dotted name and the keywords it will get; nested specs are built first.

    Keywords not given are written out at the constructor's defaults, so that a config shows every field and the command
    line can set it. Those without a default, and records, are left for `build`'s caller.
    """
    plain = bool | int | float | str | tuple | None
    fields = inspect.signature(resolve(target)).parameters.items()
    defaults = {k: p.default for k, p in fields if p.default is not p.empty and isinstance(p.default, plain)}
    return ConfigDict({TARGET: target, **defaults, **kwargs})


def build(config: Any, **extra: Any) -> Any:
    """Imports and calls what a spec names. `extra` are keywords that only the caller knows.

    Nested specs get them too. Keywords in `extra` that a constructor does not take are left out; unknown keywords of the
    spec are an error.
    """
    target, kwargs = config[TARGET], {k: _built(v, extra) for k, v in config.items() if k != TARGET}
    constructor = resolve(target)
    fields = inspect.signature(constructor).parameters
    if unknown := sorted(set(kwargs) - set(fields)):
        raise ValueError(f"{target} has no field {', '.join(unknown)}; its fields are {', '.join(fields)}")
    kwargs = {**{k: v for k, v in extra.items() if k in fields}, **kwargs}
    missing = [k for k, p in fields.items() if p.default is p.empty and k not in kwargs and p.kind != p.VAR_KEYWORD]
    if missing:
        raise ValueError(f"{target} needs {', '.join(missing)}; its fields are {', '.join(fields)}")
    return constructor(**kwargs)


def resolve(target: str) -> Any:
    """The object behind "package.module:Name"."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"config names {target!r}, which cannot be imported: {e}") from e


def _built(value: Any, extra: dict[str, Any]) -> Any:
    if isinstance(value, ConfigDict | dict):  # configs read back from JSON hold plain dicts in their lists
        return build(value, **extra) if TARGET in value else {k: _built(v, extra) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_built(v, extra) for v in value)
    return value


def assign(config: ConfigDict, assignment: str) -> None:
    """Sets a field by "name.of.field=value"; the value is a Python literal, or text.

    Raises:
      ValueError: no such field, or a value of another kind than the field's.
    """
    name, mark, text = assignment.partition("=")
    *path, last = name.split(".")
    place: Any = config
    for part in path:
        place = place[part] if isinstance(place, ConfigDict) and part in place else None
    if not mark or not isinstance(place, ConfigDict) or last not in place:
        known = ", ".join(k for k in config if k != TARGET)
        raise ValueError(f"{assignment!r}: expected FIELD=VALUE with a field that exists; the outermost are {known}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    old = place[last]
    if isinstance(old, float) and isinstance(value, int):
        value = float(value)
    fits = old is None or type(old) is type(value) or {type(old), type(value)} <= {list, tuple}
    if isinstance(old, ConfigDict) or not fits:
        kind = "has fields of its own" if isinstance(old, ConfigDict) else f"is {type(old).__name__}, such as {old!r}"
        raise ValueError(f"{assignment!r}: {name} {kind}; got {value!r}")
    place[last] = value


def assign_flags(config: ConfigDict, words: list[str]) -> None:
    """Sets fields by words such as "--config.name.of.field=value".

    Raises:
      ValueError: another word, or one that `assign` does not take.
    """
    for word in words:
        if not word.startswith("--config."):
            raise ValueError(f"unrecognized argument {word!r}; fields are set as --config.FIELD=VALUE")
        assign(config, word.removeprefix("--config."))


def load_config(path: str) -> ConfigDict:
    """The config of "configs/x.py" or "configs/x.py:variant", from any working directory."""
    file, _, variant = str(path).partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"config file {file!r} does not exist")
    add_config_root(file)
    module_spec = importlib.util.spec_from_file_location(f"_config_{Path(file).stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def add_config_root(file: str) -> None:
    """Puts the folder that holds `configs/` on sys.path, so that `from configs import parts` works.

    That is the grandparent of a config file, or what lies further up if the file is in a folder of `configs/`.
    """
    path = Path(file).resolve()
    homes = [p for p in path.parents if p.name == "configs"]
    root = str((homes[-1] if homes else path.parent).parent)
    if root not in sys.path:
        sys.path.insert(0, root)
