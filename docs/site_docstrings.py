"""A Griffe extension: docstrings are plain text with `code`, so that what Markdown would take for a link or for HTML is escaped."""

import re

import griffe

_CODE = re.compile(r"(`[^`]*`)")


class PlainText(griffe.Extension):
    """Escapes "][" and "<" of docstrings outside of `code`."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            parts = _CODE.split(obj.docstring.value)
            parts[::2] = [p.replace("][", "]\\[").replace("<", "&lt;") for p in parts[::2]]
            obj.docstring.value = "".join(parts)
