"""Configs name constructors; `build` calls them. One loader for the entry point, the commands and the tests."""

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simvlm_jax.core.files import read_bytes
from simvlm_jax.core.trust import check_arguments

TARGET = "target"
"""The field of a spec that names its constructor, "package.module:Name"."""
_PLAIN = bool | int | float | str | tuple | None


def spec(target: str, **kwargs: Any) -> ConfigDict:
    """A constructor by its dotted name and the keywords it will get; nested specs are built first.

    Keywords not given are written out at the constructor's defaults, so that a config shows every field and the command
    line can set it. Those without a default, and records, are left for `build`'s caller.
    """
    fields = inspect.signature(resolve(target)).parameters.items()
    defaults = {k: p.default for k, p in fields if p.default is not p.empty and isinstance(p.default, _PLAIN)}
    return ConfigDict({TARGET: target, **defaults, **kwargs})


class Fact(NamedTuple):
    """A value that a run has and its outermost spec may not contradict, and where it comes from."""

    value: Any
    source: str


def build(config: Any, name: str = "", /, **supplied: Any) -> Any:
    """Imports and calls what a spec names; nested specs are built first.

    Every constructor, at any depth, gets those of the `supplied` keywords that it takes; the others are left out. What the
    config says goes before them, and they go before a constructor's default: a field that stands at its default says nothing,
    for `spec` writes all defaults out.

    Args:
      config: a spec, as ConfigDict or dict.
      name: of the field the spec stands in, for messages.
      supplied: what only the caller knows, such as the run's tokenizer. A `Fact` must be agreed with: where the spec itself
        says something else it is an error. Specs inside it may differ, for a part can be meant for other images or texts than
        the whole.

    Raises:
      ValueError: a field the constructor does not have or lacks a value for, or one that contradicts a fact.
    """
    target = config[TARGET]
    name = name or str(target).rpartition(":")[2]
    values = {k: v.value if isinstance(v, Fact) else v for k, v in supplied.items()}
    constructor = resolve(target)
    fields = inspect.signature(constructor).parameters
    given = {k: v for k, v in config.items() if k != TARGET}
    if unknown := sorted(set(given) - set(fields)):
        raise ValueError(f"{target} has no field {', '.join(unknown)}; its fields are {', '.join(fields)}")
    explicit = {k: v for k, v in given.items() if k not in values or not _is_default(v, fields[k])}
    kwargs = {k: v for k, v in values.items() if k in fields}
    kwargs |= {k: _built(v, values, f"{name}.{k}") for k, v in explicit.items()}
    missing = [k for k, p in fields.items() if p.default is p.empty and k not in kwargs and p.kind != p.VAR_KEYWORD]
    if missing:
        raise ValueError(f"{target} needs {', '.join(missing)}; its fields are {', '.join(fields)}")
    for k, fact in supplied.items():
        if isinstance(fact, Fact) and k in explicit and kwargs[k] != fact.value:
            raise ValueError(
                f"{name}.{k} is {kwargs[k]!r:.80}, and {fact.source} is {fact.value!r:.80}; take {name}.{k} out of the config, "
                "or make the two agree"
            )
    check_arguments(constructor, kwargs, name)
    return constructor(**kwargs)


def _is_default(value: Any, field: inspect.Parameter) -> bool:
    """Whether a field of a config stands at its constructor's default (in JSON a tuple is a list)."""
    value = tuple(value) if isinstance(value, list) else value
    return isinstance(value, _PLAIN) and field.default is not field.empty and value == field.default


def check_specs(config: Any, name: str = "config") -> None:
    """Checks the arguments of every spec in a config against its constructor's fields; nothing is made.

    Raises:
      ValueError: a constructor that is not there, a field it does not have, or a value the field does not take.
    """
    if isinstance(config, ConfigDict | dict):
        if TARGET in config:
            constructor, given = resolve(str(config[TARGET])), {k: v for k, v in config.items() if k != TARGET}
            fields = inspect.signature(constructor).parameters
            if unknown := sorted(set(given) - set(fields)):
                raise ValueError(
                    f"{name} ({config[TARGET]}) has no field {', '.join(unknown)}; its fields are {', '.join(fields)}"
                )
            plain = {k: _built(v, {}, k) for k, v in given.items() if not _holds_spec(v)}
            check_arguments(constructor, plain, name)
        for k, v in config.items():
            check_specs(v, f"{name}.{k}")
    elif isinstance(config, list | tuple):
        for i, v in enumerate(config):
            check_specs(v, f"{name}[{i}]")


def _holds_spec(value: Any) -> bool:
    if isinstance(value, ConfigDict | dict):
        return TARGET in value or any(map(_holds_spec, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_spec, value))


def resolve(target: str) -> Any:
    """The object behind "package.module:Name"."""
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise ValueError("it is no class or function")
        return found
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"config names {target!r}, which cannot be imported: {e}") from e


def _built(value: Any, supplied: dict[str, Any], name: str) -> Any:
    if isinstance(value, ConfigDict | dict):  # configs read back from JSON hold plain dicts in their lists
        if TARGET in value:
            return build(value, name, **supplied)
        return {k: _built(v, supplied, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_built(v, supplied, f"{name}[{i}]") for i, v in enumerate(value))
    return value


RENAMED = {
    "data.train.": "data.parts.pairs.",
    "data.documents.batch_size": "data.parts.documents.rows",
    "data.documents.": "data.parts.documents.",
}
"""Beginnings of fields that earlier releases had, and what they are called now."""


def check_renamed(field: str) -> None:
    """Raises:
    ValueError: an earlier release had the field ("data.train.path"); the message has its name of today.
    """
    for old, new in RENAMED.items():
        if field.startswith(old):
            raise ValueError(f"config.{field} is config.{new}{field.removeprefix(old)} now; use that name")


def assign(config: ConfigDict, assignment: str) -> None:
    """Sets a field by "name.of.field=value"; the value is a Python literal, or text.

    Raises:
      ValueError: no such field, or a value of another kind than the field's.
    """
    name, mark, text = assignment.partition("=")
    check_renamed(name)
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


def _module_of(file: str) -> Any:
    """A config file as a module."""
    check_config_file(file)
    add_config_folder(file)
    module_spec = importlib.util.spec_from_file_location(f"_config_{Path(file).stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def variants_of(file: str) -> tuple[str, ...]:
    """The variants of a config file, "" being the one without a name; a file that does not tell has that one."""
    return tuple(getattr(_module_of(file), "VARIANTS", ("",)))


def load_config(path: str) -> ConfigDict:
    """The config of "configs/x.py" or "configs/x.py:variant", from any working directory."""
    file, _, variant = str(path).partition(":")
    module = _module_of(file)
    config = module.get_config(variant) if variant else module.get_config()
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {file!r} gives a {type(config).__name__}, not an ml_collections.ConfigDict")
    return config


def check_config_file(file: str) -> None:
    """Refuses what is no config, before it is run.

    Raises:
      ValueError: it is not there, is not Python, or defines no `get_config`.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"config file {file!r} does not exist; name FILE.py or FILE.py:VARIANT")
    if not file.endswith(".py"):
        raise ValueError(f"config file {file!r} is not a .py file; name one such as configs/prefixlm.py")
    try:
        tree = ast.parse(read_bytes(file))
    except (SyntaxError, ValueError, RecursionError) as e:
        at = f", line {e.lineno}" if isinstance(e, SyntaxError) and e.lineno else ""
        raise ValueError(f"config file {file!r} is not Python{at}: {getattr(e, 'msg', e)}") from e
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    names |= {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    names |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    if "get_config" not in names:
        raise ValueError(f"config file {file!r} defines no get_config(variant); see configs/prefixlm.py")


def add_config_folder(file: str) -> None:
    """Lets a config import the modules of its own folder, as in `from configs import parts`, and those of the built-in configs.

    That is the folder `configs/` the file lies in, at any depth, else the folder of the file. What lies beside a folder `configs/`
    elsewhere, such as `models/x.py`, can be named as `models.x`; what is installed goes before it.
    """
    path = Path(file).resolve()
    home = ([p for p in path.parents if p.name == "configs"] or [path.parent])[-1]
    name = home.name
    known = sys.modules.get(name)
    if getattr(known, _OURS, False) and known is not None and str(home) not in known.__path__:
        known.__path__.insert(0, str(home))
        for other in [m for m in sys.modules if m.startswith(f"{name}.")]:  # those of another folder of that name
            del sys.modules[other]
    if name != "configs" and "configs" not in sys.modules and (_BUILT_IN / "parts.py").is_file():
        add_config_folder(str(_BUILT_IN / "parts.py"))  # a config from elsewhere may build on those beside this package
    if known is None and name.isidentifier() and (name == "configs" or importlib.util.find_spec(name) is None):
        package = types.ModuleType(name, "The folder of the config that was named.")
        elsewhere = name == "configs" and home != _BUILT_IN
        package.__path__ = [str(home), *([str(_BUILT_IN)] if elsewhere and (_BUILT_IN / "parts.py").is_file() else [])]
        if elsewhere and str(home.parent) not in sys.path:
            sys.path.append(str(home.parent))
        package.__spec__ = importlib.machinery.ModuleSpec(
            name, None, is_package=True
        )  # by which core/trust.py finds it
        package.__spec__.submodule_search_locations = package.__path__
        setattr(package, _OURS, True)
        sys.modules[name] = package


_OURS = "_made_for_configs"
_BUILT_IN = Path(__file__).resolve().parents[2] / "configs"
