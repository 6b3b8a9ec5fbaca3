"""What a file may have built: classes that declare themselves buildable, found in source text before anything is imported.

A config named on the command line is its user's code and names what it likes. The config of a run directory may come from
anybody: every constructor it names must be a class of this package under `@buildable(...)`, in a field that the class
declares it is for. Classes of other packages join where the package is installed with an entry point of the group
"simvlm_jax", or where its name is given by --trust.
"""

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.schema import BadValue, check

GROUP = "simvlm_jax"
TRUSTED = "SIMVLM_TRUST"
"""Names of packages, with commas; processes that are started inherit them."""
_TARGET = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


class NotAllowed(ValueError):
    """A file names a constructor that files may not name."""


def buildable(*fields: str) -> Callable[[type], Any]:
    """Declares a class one that files may name, in fields of these names (or in a group of that name).

    Its arguments are checked against their annotations (see `check_arguments`) before it is made.
    """

    def declare(cls: type) -> Any:
        made = cls.__init__
        signature = inspect.signature(made)

        @functools.wraps(made)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            check_arguments(type(self), given, type(self).__name__)
            made(self, *args, **kwargs)

        cls.__init__ = checked
        cls.is_buildable = True  # pyright: ignore[reportAttributeAccessIssue]
        return cls

    return declare


def check_arguments(cls: Any, given: Mapping[str, Any], name: str) -> None:
    """Checks arguments against those of a class's annotations that are plain values, with their ranges (core/schema.py), or
    classes of this kind.

    Raises:
      BadValue: one does not fit; the message begins with `name`.FIELD.
    """
    hints = _hints(cls) if isinstance(cls, type) else {}
    for field, value in given.items():
        hint = hints.get(field)
        value = value.item() if type(value).__module__ == "numpy" and not getattr(value, "ndim", 1) else value
        built = [kind for kind in _members(hint) if _buildable(kind)]
        if any(isinstance(value, kind) for kind in built):
            continue
        plain = [kind for kind in _members(hint) if not _buildable(kind)]
        if built and not plain:
            raise BadValue(f"{name}.{field} is {value!r:.120}: expected a spec of {built[0].__name__}")
        if hint is not None:
            check(value, functools.reduce(operator.or_, plain) if built else hint, f"{name}.{field}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    made = inspect.unwrap(cls.__init__)
    found = {}
    for name, hint in getattr(made, "__annotations__", {}).items():
        with contextlib.suppress(Exception):  # of a name that is imported for type checkers alone
            one = types.SimpleNamespace(__annotations__={name: hint})
            found |= typing.get_type_hints(one, made.__globals__, include_extras=True)
    return {k: v for k, v in found.items() if _plain(v) or all(_plain(m) or _buildable(m) for m in _members(v))}


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _buildable(hint: Any) -> bool:
    """Whether a type is a class that declares itself buildable."""
    return isinstance(hint, type) and getattr(hint, "is_buildable", False)


def _plain(hint: Any) -> bool:
    """Whether a type is made of plain values alone."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _plain(inside[0])
    if origin in (typing.Union, types.UnionType, tuple, list, dict, Sequence):
        return all(_plain(v) for v in inside if v is not Ellipsis)
    return origin is typing.Literal or hint in (bool, int, float, str, type(None))


def trust(package: str) -> None:
    """Admits the classes of a package to the configs of files, for this process and those it starts.

    Raises:
      ValueError: it is not the name of a package.
    """
    if not package.isidentifier():
        raise ValueError(f"--trust {package!r} is not the name of a package")
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*filter(None, os.environ.get(TRUSTED, "").split(",")), package]))


def check_targets(config: Any, where: str, key: str = "target") -> None:
    """Looks at every constructor that a config names, at any depth; nothing is imported.

    Raises:
      NotAllowed: one that a file may not name, or not there.
    """
    for path, field, target in _targets(config, "config", "", False, key):
        if not (isinstance(target, str) and (found := _TARGET.fullmatch(target))):
            raise NotAllowed(f'{where}: {path} is {target!r:.100}, not the name of a class ("package.module:Name")')
        package = found[1]
        own = package == __name__.partition(".")[0]
        if not own and package not in _admitted():
            raise NotAllowed(
                f"{where}: {path} names {target!r}; of what a file names only classes of {GROUP} are built. If "
                f"{package!r} is a package that you trust, pass --trust {package}, or install it with an entry point of the "
                f'group "{GROUP}"'
            )
        declared = _declared(package, found[2], found[3])
        if declared is None or (own and not declared):
            raise NotAllowed(
                f"{where}: {path} names {target!r}, which is no class that declares itself buildable "
                "(simvlm_jax.core.trust.buildable)"
            )
        if declared and not field & set(declared):
            raise NotAllowed(
                f"{where}: {path} names {target!r}, which is for {', '.join(declared)} and not for {min(field, key=len)}"
            )


def _targets(value: Any, path: str, name: str, grouped: bool, key: str) -> Iterator[tuple[str, set[str], Any]]:
    """(path, names of the field it stands in, target) of every spec in a config. grouped: `name` is a group of specs."""
    if isinstance(value, dict):
        is_spec = key in value
        if is_spec:
            yield f"{path}.{key}", {name, path.rpartition(".")[2]} if grouped else {name}, value[key]
        for k, v in value.items():
            if k == key:
                continue
            inner = isinstance(v, dict) and key in v
            in_group = inner and not is_spec
            yield from _targets(v, f"{path}.{k}", name if in_group and name else str(k), in_group, key)
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from _targets(v, f"{path}[{i}]", name, False, key)


def _admitted() -> set[str]:
    installed = {e.value.partition(":")[0].partition(".")[0] for e in importlib.metadata.entry_points(group=GROUP)}
    return installed | set(filter(None, os.environ.get(TRUSTED, "").split(",")))


@functools.cache
def _declared(package: str, rest: str, name: str) -> tuple[str, ...] | None:
    """The fields that a class declares itself for, () if it declares none; None if the module defines no such class."""
    top = importlib.util.find_spec(package)  # of a package, which finding does not import
    if top is None:
        return None
    parts = rest.split(".")[1:]
    homes = [Path(p) for p in top.submodule_search_locations or ()]  # a folder without __init__.py has them too
    candidates = [Path(top.origin)] if not homes and not parts and top.origin else []
    for base in (home.joinpath(*parts) for home in homes):
        candidates += [*([base.with_suffix(".py")] if parts else []), base / "__init__.py"]
    source = next((p for p in candidates if p.is_file()), None)
    if source is None:
        return None
    for node in ast.parse(source.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for d in node.decorator_list:
                called = d.func if isinstance(d, ast.Call) else None
                if (isinstance(called, ast.Name) and called.id == "buildable") or (
                    isinstance(called, ast.Attribute) and called.attr == "buildable"
                ):
                    return tuple(a.value for a in d.args if isinstance(a, ast.Constant))  # pyright: ignore
            return ()
    return None
