"""Lines of a text as people mean them."""

import re

_END = re.compile(r"\r\n|\n|\r")


def lines_of(text: str) -> list[str]:
    r"""Lines that end in \n, \r\n or \r, without these; none after the last end.

    `str.splitlines` also ends one at a vertical tab, a form feed, U+0085 or U+2028, which people's texts have inside a line.
    """
    found = _END.split(text)
    return found if found[-1] else found[:-1]
