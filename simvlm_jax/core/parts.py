"""Parts of a batch: groups of rows with names, each with its own number of rows."""

from typing import Any

from simvlm_jax.core.types import Batch, Rows

PAIRS = "pairs"
"""The part of images with texts, which comes first: losses and checksums are summed in this order."""

PACKED = ("segment", "position", "target_mask")
"""What a packed row has beside `text` and `text_mask`: of which text each slot is, its place there, what is predicted."""


def ordered(names: Any) -> list[str]:
    """Names of parts in the order of the sample sequence: pairs first, the others by name."""
    return sorted(names, key=lambda name: (name != PAIRS, name))


def parts_of(batch: Batch) -> list[tuple[str, Rows]]:
    """(name, rows) of each part, in order; what jit makes of a dict does not keep the order it was made in.

    Raises:
      ValueError: a batch without parts, such as bare rows.
    """
    if not batch or not all(isinstance(rows, dict) for rows in batch.values()):
        raise ValueError(
            f"a batch is {{part: rows}}, as {{'pairs': {{'image': ..., 'text': ...}}}}; got {', '.join(batch) or 'nothing'}"
        )
    return [(name, batch[name]) for name in ordered(batch)]


def check_plain(rows: Rows, part: str, model: str, needs: tuple[str, ...] = (), packed: bool = False) -> None:
    """Refuse rows that a model cannot learn from.

    needs: the keys that every row must have. packed: whether the model takes several texts per row, without images.

    Raises:
      ValueError: one of the keys is missing, images stand among the text, or several texts share a row, which the
        model does not take (none does beside an image), or have one prefix length for all.
    """
    packs = packed and "segment" in rows
    if "segment" in rows and not packs:
        raise ValueError(
            f"{model} takes one example per row, and the rows of {part!r} are packed (they have `segment`); set "
            f"config.data.parts.{part}.packed=False, and transforms for texts of their own"
        )
    if missing := [key for key in (*needs, *(PACKED if packs else ())) if key not in rows]:
        raise ValueError(
            f"{model} learns from {', '.join(needs)}, and the rows of {part!r} have no {', '.join(missing)}; keep them in "
            f"config.data.parts.{part}.transforms"
        )
    if "image_index" in rows:
        raise ValueError(
            f"{model} takes images before a text, and the rows of {part!r} have them anywhere (`image_index`); use other "
            f"transforms in config.data.parts.{part}"
        )
    if packs and "image" in rows:
        raise ValueError(
            f"{model} takes packed rows of text alone, and those of {part!r} have `segment` and `image`; take `image` out of "
            f"Keep's keys in config.data.parts.{part}.transforms, or set config.data.parts.{part}.packed=False"
        )
    if packs and "prefix_length" in rows and rows["prefix_length"].ndim != rows["segment"].ndim:
        raise ValueError(
            f"the packed rows of {part!r} have one prefix_length per row, and each slot needs that of its text, [B,T]; draw it "
            f"with DrawPrefix, or fix it with FixPrefix, after LayOutPacked in config.data.parts.{part}.transforms"
        )


def check_one_text(rows: Rows, what: str) -> None:
    """Refuse packed rows where the text of each row is what is asked about.

    Raises:
      ValueError: several texts stand in a row; the message begins with `what`.
    """
    if "segment" in rows:
        raise ValueError(
            f"{what} needs one text per row, and these rows are packed (they have `segment`); give each text a row of its own"
        )


def only_part(batch: Batch, name: str, model: str) -> Rows:
    """The rows of the one part that a model learns from.

    Raises:
      ValueError: it is not there, or others are; the message names model, parts and the fields that mend it.
    """
    found = dict(parts_of(batch))
    if name not in found:
        raise ValueError(
            f"{model} learns from the part {name!r}, and this batch has {', '.join(found)}; give config.data.parts.{name} rows"
        )
    if others := [other for other in found if other != name]:
        raise ValueError(
            f"{model} learns from the part {name!r} alone, and this batch has {', '.join(others)} too; set "
            f"config.data.parts.{others[0]}.rows=0"
        )
    check_plain(found[name], name, model)
    return found[name]
