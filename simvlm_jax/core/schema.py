"""Values checked against types, once, where they come in: JSON of files, sections of configs, fields of constructors."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**40)]
Positive = Annotated[int, Meta(ge=1, le=2**40)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, lt=1)]
"""Of dropout, of a decay: 1 would leave nothing."""
AboveZero = Annotated[float, Meta(gt=0, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0, le=1e12)]
Finite = Annotated[float, Meta(ge=-1e12, le=1e12)]
Side = Annotated[int, Meta(ge=1, le=16384)]
"""Of a picture, in pixels."""


class BadValue(ValueError):
    """A value that its field does not take; the message has the field's full name, the value and what is expected."""


def check(value: Any, kind: Any, name: str) -> None:
    """Checks a value against a type (of msgspec's: builtins, unions, Literal, Annotated with Meta, Struct).

    Raises:
      BadValue: it does not fit.
    """
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        told, _, place = str(e).partition(" - at ")
        path = place.strip("`").removeprefix("$")
        found = _at(value, path)
        shown = "" if found is _UNKNOWN else f" is {found!r:.120}:" if not told.startswith("Object missing") else ":"
        raise BadValue(f"{name}{path}{shown} {_plain(told)}") from e
    except RecursionError as e:
        raise BadValue(f"{name} nests too deep") from e


_UNKNOWN = object()


def _at(value: Any, path: str) -> Any:
    """What stands at ".a.b[0]" of a value; a key that msgspec does not tell ("[...]") has no answer."""
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        try:
            value = value[int(index)] if index.isdigit() else value[name] if name else value[_UNKNOWN]
        except (KeyError, IndexError, TypeError):
            return _UNKNOWN
    return value


def _plain(told: str) -> str:
    """msgspec's words for values of JSON, as people know them."""
    told = told.replace("`", "").replace("Object missing required field", "it has no")
    for of, name in (("object", "a record"), ("array", "a list"), ("str", "text"), ("null", "nothing")):
        told = re.sub(rf"\b{of}\b", name, told)
    return told[:1].lower() + told[1:]
