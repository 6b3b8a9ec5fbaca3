"""Values checked against types, once, where they come in: JSON of files, sections of configs, fields of constructors."""

import functools
import re
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**40)]
Positive = Annotated[int, Meta(ge=1, le=2**40)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, lt=1)]
"""A rate of dropout or decay, below 1."""
AboveZero = Annotated[float, Meta(gt=0, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0, le=1e12)]
Finite = Annotated[float, Meta(ge=-1e12, le=1e12)]
Side = Annotated[int, Meta(ge=1, le=16384)]
"""The side of a picture in pixels."""
Sides = Side | Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
"""A side of a square, or rows and columns of pixels. (msgspec 0.23 crashes on a union of a number with bounds and `tuple[X, X]`.)"""
Pattern = Annotated[str, Meta(title="pattern")]
"""A regular expression."""
Replacement = Annotated[str, Meta(title="replacement")]
"""What the match of a pattern becomes; it stands after its pattern, as in tuple[Pattern, Replacement]."""


class BadValue(ValueError):
    """A value that its field does not take; the message has the field's full name, the value and what is expected."""


def check(value: Any, kind: Any, name: str) -> None:
    """Checks a value against a type (of msgspec's: builtins, unions, Literal, Annotated with Meta, Struct).

    Raises:
      BadValue: it does not fit, or a pattern in it is no regular expression.
    """
    try:
        msgspec.convert(value, kind)
        if _has_patterns(kind):
            _check_patterns(value, kind, name)
    except msgspec.ValidationError as e:
        message, _, place = str(e).partition(" - at ")
        path, found = _place(value, kind, place.strip("`").removeprefix("$"))
        shown = "" if found is _UNKNOWN else f" is {found!r:.120}:" if not message.startswith("Object missing") else ":"
        raise BadValue(f"{name}{path}{shown} {_plain(message)}") from e
    except RecursionError as e:
        raise BadValue(f"{name} nests too deep") from e


@functools.cache
def _has_patterns(kind: Any) -> bool:
    """Whether patterns stand anywhere in a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return any(_has_patterns(f.type) for f in msgspec.structs.fields(kind))
    return kind == Pattern or any(map(_has_patterns, typing.get_args(kind)))


def _check_patterns(value: Any, kind: Any, name: str) -> None:
    """Compiles every pattern in a value that fits its type otherwise."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind == Pattern:
        compiled(value, name)
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for f in msgspec.structs.fields(kind):
            if f.name in value and _has_patterns(f.type):
                _check_patterns(value[f.name], f.type, f"{name}.{f.name}")
    elif origin in (typing.Union, types.UnionType):
        for one in inside:
            if _has_patterns(one) and _fits(value, one):
                _check_patterns(value, one, name)
    elif origin in (list, Sequence):
        for i, item in enumerate(value):
            _check_patterns(item, inside[0], f"{name}[{i}]")
    elif origin is tuple:
        for i, (item, one) in enumerate(zip(value, inside, strict=True)):
            if _has_patterns(one):
                _check_patterns(item, one, f"{name}[{i}]")
        if inside[0] == Pattern and Replacement in (inside[1], *typing.get_args(inside[1])) and value[1] is not None:
            _check_replacement(value[0], value[1], f"{name}[1]")


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
      BadValue: it is none; the message begins with `name`.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as e:
        raise BadValue(
            f"{name} is {pattern!r:.120}: it is no regular expression ({_why(e)}); a sign such as ( stands for itself as \\("
        ) from e


def _check_replacement(pattern: str, replacement: str, name: str) -> None:
    try:
        re.sub(pattern, replacement, "")
    except (re.error, IndexError) as e:
        raise BadValue(f"{name} is {replacement!r:.120}: it cannot replace {pattern!r:.120} ({_why(e)})") from e


def _why(e: Exception) -> str:
    return "it nests too deep" if isinstance(e, RecursionError) else str(e)


_UNKNOWN = object()


def _place(value: Any, kind: Any, path: str) -> tuple[str, Any]:
    """(path, what stands there) of msgspec's path, in which "[...]" is a key that it does not tell: found by trying each."""
    done, here, rest = "", value, path
    while rest:
        part = re.match(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", rest)
        if part is None:
            return path, _UNKNOWN
        rest = rest[part.end() :]
        try:
            if part[2] == "...":
                key = next(k for k in here if not _fits(_only(value, done, k), kind))
                done, here = f"{done}.{key}", here[key]
            else:
                here = here[int(part[2])] if part[2] else here[part[1]]
                done += part[0]
        except (KeyError, IndexError, TypeError, StopIteration):
            return path, _UNKNOWN
    return done, here


def _only(value: Any, path: str, key: str) -> Any:
    """A value whose record at a path holds one key alone."""
    if not path:
        return {key: value[key]}
    part = re.match(r"\.([^.\[]+)|\[(\d+)\]", path)
    assert part is not None
    if part[2]:
        inner = list(value)
        inner[int(part[2])] = _only(value[int(part[2])], path[part.end() :], key)
        return inner
    return {**value, part[1]: _only(value[part[1]], path[part.end() :], key)}


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _plain(message: str) -> str:
    """msgspec's words for values of JSON, as people know them."""
    message = message.replace("`", "").replace("Object missing required field", "it has no")
    for of, name in (("object", "a record"), ("array", "a list"), ("str", "text"), ("null", "nothing")):
        message = re.sub(rf"\b{of}\b", name, message)
    message = message.replace("text of length >= 1", "text that is not empty")
    return message[:1].lower() + message[1:]
