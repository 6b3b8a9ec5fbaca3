"""What a reader of a format is: readers/ has one file for each, and sources.py asks them in a stated order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from simvlm_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class How:
    """How a path is to be read: the arguments of `open_source`.

    alone: no other reader of layouts has accepted the folder.
    """

    split: str
    images: bool = True
    columns: str = ""
    truncated: bool = False
    alone: bool = True


class Reader(NamedTuple):
    """A format. A module of readers/ with functions of these names is one too.

    accepts(path, how): the name of a file that is of the format, "" where nothing is; cheap, for it is asked of every folder.
    read(path, how): the source; raises Refused, NoSuchSplit or BadFile with the mend.
    """

    accepts: Callable[[Path, How], str]
    read: Callable[[Path, How], Source]
