"""How someone's model has its pictures made ready, as fields of config.data and as the mean and deviation of its pixels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simvlm_jax.core.files import BadFile, read_json
from simvlm_jax.core.types import sides_of

FILE = "preprocessor_config.json"
_WHOLE = "processor_config.json"
"""Where transformers 5 keeps the same within a record of tokenizer and pictures."""
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Of Pillow, by number, as a preprocessor_config.json has them."""
Channels = tuple[float, float, float]


class Pixels(NamedTuple):
    """image_size: pixels a side, or (rows, columns). fit: fields of data.fit.Fit. mean, deviation: of pixels in [0, 1]."""

    image_size: Any
    fit: Mapping[str, Any]
    mean: Channels
    deviation: Channels

    @property
    def data(self) -> dict[str, Any]:
        """Fields of config.data."""
        return {"image_size": self.image_size, "fit": dict(self.fit)}


def pixels_of(folder: Path, image_size: Any, usual: Pixels) -> Pixels:
    """What the preprocessor_config.json beside weights says; `usual` where there is none.

    image_size: of the model.

    Raises:
      BadFile: it says what is not known here.
    """
    usual = usual._replace(image_size=image_size)
    path = folder / FILE
    if not path.is_file():
        path = folder / _WHOLE
    if not path.is_file():
        return usual
    said = read_json(path)
    said = said.get("image_processor") if isinstance(said, dict) and path.name == _WHOLE else said
    if not isinstance(said, dict):
        raise BadFile(f"{path} holds no record{' image_processor' * (path.name == _WHOLE)}")
    if not (said.get("do_resize", True) and said.get("do_rescale", True)):
        raise BadFile(f"{path} does not resize, or does not rescale, which is not known here")
    scale = said.get("rescale_factor", 1 / 255)
    if not 0.99 / 255 < float(scale) < 1.01 / 255:
        raise BadFile(f"{path} multiplies pixels by {scale}, and only 1/255 is known here")
    mean, deviation = (
        _channels(said.get(k), v) for k, v in (("image_mean", usual.mean), ("image_std", usual.deviation))
    )
    if not said.get("do_normalize", True):
        mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Pixels(image_size, _fit(said, sides_of(image_size), usual, path), mean, deviation)


def _fit(said: Mapping[str, Any], size: tuple[int, int], usual: Pixels, path: Path) -> dict[str, Any]:
    resample = said.get("resample", _number(str(usual.fit.get("filter", "bicubic"))))
    if resample not in _FILTERS:
        raise BadFile(f"{path} resizes by filter {resample!r}; known are {', '.join(map(str, _FILTERS))}")
    fit: dict[str, Any] = {"filter": _FILTERS[resample], "rounding": "down"}
    to = said.get("size", {"height": size[0], "width": size[1]})
    if isinstance(to, int):  # of old: a side of the square, but for processors that keep the shape and cut
        to = {"shortest_edge": to} if usual.fit.get("how") == "shorter" else {"height": to, "width": to}
    crops = bool(said.get("do_center_crop", said.get("crop_size") is not None and "shortest_edge" in to))
    cut = said.get("crop_size")
    cut = cut if isinstance(cut, dict) else {"height": cut, "width": cut}
    if crops and cut["height"] is not None and (cut.get("height"), cut.get("width")) != size:
        raise BadFile(f"{path} cuts out {cut} and the model takes {size[0]} x {size[1]}; correct one of them")
    if said.get("do_pad"):
        fill = tuple(int(255 * m) for m in _channels(said.get("image_mean"), usual.mean))
        return {**fit, "how": "pad", "fill": fill}
    if "shortest_edge" in to:
        if not crops:
            raise BadFile(f"{path} resizes the shorter side and cuts nothing out, so that pictures are of any shape")
        return {**fit, "how": "shorter", "side": int(to["shortest_edge"])}
    if "height" not in to or "width" not in to:
        raise BadFile(f"{path} resizes to {to}; known are shortest_edge, and height with width")
    if crops and (to["height"], to["width"]) != size:
        if to["height"] != to["width"]:
            raise BadFile(f"{path} cuts the centre out of {to['height']} x {to['width']} pixels; known are squares")
        return {**fit, "how": "whole", "side": int(to["height"])}
    return {**fit, "how": "whole"}


def _number(name: str) -> int:
    return next(number for number, known in _FILTERS.items() if known == name)


def _channels(values: Any, usual: Channels) -> Channels:
    if values is None:
        return usual
    if not isinstance(values, Sequence) or len(values) != 3:
        raise BadFile(f"{values!r:.60} are not three numbers, one a channel")
    return float(values[0]), float(values[1]), float(values[2])


def written(data: Any, mean: Sequence[float], deviation: Sequence[float], kind: str) -> dict[str, Any]:
    """preprocessor_config.json of a run. kind: the class of transformers that reads it."""
    Y, X = sides_of(data.image_size)
    fit = dict(data.get("fit") or {})
    how = fit.get("how") or ("whole" if data.whole else "shorter")
    record: dict[str, Any] = dict(
        image_processor_type=kind,
        do_resize=True,
        resample=_number(fit.get("filter", "bicubic")),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(mean),
        image_std=list(deviation),
        do_convert_rgb=True,
    )
    side = int(fit.get("side") or 0)
    if how == "whole" and not side:
        return {**record, "size": {"height": Y, "width": X}, "do_center_crop": False}
    crop = {"do_center_crop": True, "crop_size": {"height": Y, "width": X}}
    if how == "whole":
        return {**record, **crop, "size": {"height": side, "width": side}}
    if how == "longer":
        raise ValueError(
            f"pictures of this run are made ready as {how!r} (config.data.fit.how), which no preprocessor_config.json says; "
            "export with another format, or fine-tune with whole or shorter"
        )
    return {**record, **crop, "size": {"shortest_edge": side or min(Y, X)}, "do_pad": how == "pad"}


def answers_of(named: Sequence[str], config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The answers of a head of so many classes: those that a person named, else those that a config.json lists (id2label), else
    their numbers.

    Raises:
      ValueError: there are more or fewer than classes.
    """
    listed = config.get("id2label")
    found = tuple(named)
    if not found and isinstance(listed, dict) and len(listed) == classes:
        try:
            found = tuple(str(listed[k]) for k in sorted(listed, key=int))
        except ValueError as e:
            raise BadFile(f"the config's id2label has keys that are no numbers ({e})") from e
    found = found or tuple(map(str, range(classes)))
    if len(found) != classes:
        raise ValueError(
            f"there are {len(found)} names for the {classes} answers of the head; name as many with --labels"
        )
    return found


def answers(names: Sequence[str]) -> dict[str, Any]:
    """The fields of a config.json that list answers."""
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def read_labels(path: Path) -> tuple[str, ...]:
    """Names in a file: a line each, or a JSON list."""
    from simvlm_jax.core.files import read_text

    text = read_text(path)
    if path.suffix == ".json":
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
            raise BadFile(f"{path} is no list of names")
        return tuple(found)
    return tuple(line.strip() for line in text.split("\n") if line.strip())
