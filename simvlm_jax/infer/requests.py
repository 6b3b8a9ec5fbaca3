"""Requests: lists of parts, texts and images, that a model continues.

A part is a text or an image [Y,X,3] uint8 of the run's size. Which orders a model takes is said by its capabilities: one with
`image_tokens` reads images wherever they stand among the text, every other reads its images first and then one text.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.types import Rows
from simvlm_jax.infer.answered import Notes
from simvlm_jax.infer.prompts import prompt_rows
from simvlm_jax.text.padding import pad_rows
from simvlm_jax.text.tokenizer import Tokenizer

Part = str | np.ndarray
Request = Sequence[Part]


class RequestRows(NamedTuple):
    """Rows that can be one batch. places: numbers of the requests they are made of."""

    places: list[int]
    rows: Rows
    notes: Notes


def rows_of_requests(
    requests: Sequence[Request], tokenizer: Tokenizer, model: str, image_tokens: int | None, width: int | None
) -> list[RequestRows]:
    """Makes rows of requests; those with other numbers of images are rows of their own.

    model: its name, for errors. image_tokens: P, the positions that an image takes among the text, of a model that reads images
    anywhere; None of one that reads them first. width: positions of a row, by default those of the longest request.

    Raises:
      ValueError: a request is no list of texts and images, or the model cannot take its parts in this order.
    """
    if not requests:
        raise ValueError("there are no requests; give one, or a list of them")
    for i, request in enumerate(requests):
        _check_parts(i, request)
    sizes = {part.shape[:2] for request in requests for part in request if not isinstance(part, str)}
    if len(sizes) > 1:
        raise ValueError(
            f"images of {' and '.join(f'{y} x {x}' for y, x in sorted(sizes))} pixels; resize them to the run's"
        )
    if image_tokens is not None:
        return [_interleaved(requests, tokenizer, image_tokens, width)]
    for i, request in enumerate(requests):
        _check_images_first(i, request, model)
    texts = [" ".join(part for part in request if isinstance(part, str)) for request in requests]
    if width is None:  # one width for all groups, so that an answer has the same room in each
        width = prompt_rows(tokenizer, texts).values["text"].shape[1]
    groups: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(sum(not isinstance(part, str) for part in request), []).append(i)
    made = []
    for images, places in sorted(groups.items()):
        rows, notes = prompt_rows(tokenizer, [texts[i] for i in places], width)
        if images:
            rows["image"] = np.stack([_images(requests[i]) for i in places])
        made.append(RequestRows(places, rows, notes))
    return made


def _interleaved(
    requests: Sequence[Request], tokenizer: Tokenizer, image_tokens: int, width: int | None
) -> RequestRows:
    """Rows with `image_index` [N,T] int32: -1 where text stands, m * P + p where token p of the row's image m does."""
    vocabulary, P = tokenizer.vocabulary, image_tokens
    made = [_positions(request, tokenizer, P) for request in requests]
    longest = max(len(ids) for ids, _ in made)
    width = longest if width is None else width
    for i, (ids, index) in enumerate(made):
        if len(ids) > width or len(ids) >= vocabulary.length:
            raise ValueError(
                f"request {i} takes {len(ids)} positions ({(np.asarray(index) >= 0).sum()} of them for images, {P} each), and "
                f"there are {min(width, vocabulary.length - 1)} before an answer; shorten it, or train with a longer "
                "config.text.length"
            )
    text, mask = pad_rows([ids for ids, _ in made], width, vocabulary.pad)
    index, _ = pad_rows([index for _, index in made], width, -1)
    rows: Rows = {"text": text, "text_mask": mask, "image_index": index}
    images = [_images(request) for request in requests]
    if most := max(map(len, images)):
        shape = next(own.shape[1:] for own in images if len(own))
        rows["image"] = np.zeros((len(images), most, *shape), np.uint8)
        rows["image_mask"] = np.zeros((len(images), most), bool)
        for i, own in enumerate(images):
            if len(own):
                rows["image"][i, : len(own)], rows["image_mask"][i, : len(own)] = own, True
    return RequestRows(list(range(len(requests))), rows, Counter())


def _positions(request: Request, tokenizer: Tokenizer, image_tokens: int) -> tuple[list[int], list[int]]:
    """(ids, image index) of every position of a request; the id under an image token is padding's."""
    ids: list[int] = []
    index: list[int] = []
    seen = 0
    for part in request:
        if isinstance(part, str):
            pieces = tokenizer.ids_of(part)
            ids += pieces
            index += [-1] * len(pieces)
        else:
            ids += [tokenizer.vocabulary.pad] * image_tokens
            index += range(seen * image_tokens, (seen + 1) * image_tokens)
            seen += 1
    return ids, index


def _images(request: Request) -> np.ndarray:
    """The images [M,Y,X,C] of a request."""
    images = [part for part in request if not isinstance(part, str)]
    return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)


def _check_parts(number: int, request: Any) -> None:
    if isinstance(request, str | bytes | np.ndarray) or not isinstance(request, Sequence) or not len(request):
        raise ValueError(f"request {number} is {request!r:.80}: give a list of parts, such as [image, 'what is it?']")
    for k, part in enumerate(request):
        if isinstance(part, str):
            continue
        if not isinstance(part, np.ndarray):
            raise ValueError(f"request {number}, part {k} is {part!r:.80}: a part is a text, or an image [Y,X,3] uint8")
        if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3:
            raise ValueError(
                f"request {number}, part {k} is {part.dtype} {list(part.shape)}: an image is uint8 [Y,X,3]"
            )


def _check_images_first(number: int, request: Request, model: str) -> None:
    kinds = "".join("t" if isinstance(part, str) else "i" for part in request)
    if "ti" in kinds:
        order = ", ".join("text" if kind == "t" else "image" for kind in kinds)
        raise ValueError(
            f"request {number} is {order}, and {model} reads images first, then text; put the images before the text"
        )
