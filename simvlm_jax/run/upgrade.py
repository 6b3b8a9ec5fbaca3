"""The configs of older runs, in the words of today."""

from typing import Any

_TRANSFORMS = "simvlm_jax.data.transforms:"
_CLASSIFICATION = "simvlm_jax.eval.answering:Classification"
_MADE = {
    "Pixels": ("image",),
    "Tokenize": ("text", "text_mask"),
    "TokenizePair": ("text", "text_mask", "prefix_length"),
    "TokenizeAfter": ("text", "text_mask", "prefix_length"),
    "DrawPrefix": ("prefix_length",),
    "FixPrefix": ("prefix_length",),
    "DrawSeed": ("seed",),
    "Label": ("label",),
}
"""The keys of a row that each transform made, before lists of transforms named them at their end."""

_NO_DECAY = [[r"(^|/)(scale|bias|\w*_bias)$|position|relative|logit_scale", 0.0]]
"""The default of optimizer.decay before it was read from letters (core/letters.py)."""


_FIELDS = {
    "split": "train",
    "columns": "",
    "truncated": False,
    "sources": {},
    "rows": 0,
    "images": True,
    "packed": False,
    "chunked": True,
    "cache": False,
}
"""Defaults of a part's keys, from before each part had all of them."""
_FIT = {"how": "", "side": 0, "filter": "bicubic", "fill": [0, 0, 0], "rounding": "down"}
"""config.data.fit from before there was one."""


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run as this release would have recorded it; one of this release as it is.

    `data.train` and `data.documents` become the parts `pairs` and `documents`, and their lists of transforms end in a Keep of the
    keys that rows had; so do those of suites, whose `images` is the key "image" there. The list of what has no weight decay is
    empty where it was the default, which letters say now.
    """
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.get("decay") == _NO_DECAY:
        config = {**config, "optimizer": {**optimizer, "decay": []}}
    suites = (config.get("eval") or {}).get("suites")
    if isinstance(suites, dict):
        suites = {name: _suite(s) if isinstance(s, dict) else s for name, s in suites.items()}
        config = {**config, "eval": {**config["eval"], "suites": suites}}
    data = config.get("data")
    if not isinstance(data, dict) or "parts" in data:
        return config
    data, parts = {"fit": dict(_FIT), **data}, {}
    for old, name, more in (("train", "pairs", {"rows": None}), ("documents", "documents", {"images": False})):
        if isinstance(fields := data.pop(old, None), dict):
            fields = {{"batch_size": "rows"}.get(k, k): v for k, v in fields.items()}
            parts[name] = {**_FIELDS, **more, **fields}
            if isinstance(steps := fields.get("transforms"), list) and steps:
                parts[name]["transforms"] = [_fitted(s) for s in _kept(steps)]
    return {**config, "data": {**data, "parts": parts}}


def _fitted(step: Any) -> Any:
    """A transform with the field that Pixels has got since."""
    of_pixels = isinstance(step, dict) and step.get("target") == f"{_TRANSFORMS}Pixels"
    return {"fit": None, **step} if of_pixels else step


def _suite(suite: dict[str, Any]) -> dict[str, Any]:
    """A suite of classification whose transforms end in a Keep, in place of the flag `images`."""
    if suite.get("target") != _CLASSIFICATION:  # suites of other packages keep what they have
        return suite
    steps = suite.get("transforms")
    if not isinstance(steps, list) or (kept := _kept(steps, ("image",) if suite.get("images", True) else ())) is steps:
        return suite
    return {**{k: v for k, v in suite.items() if k != "images"}, "transforms": kept}


def _kept(steps: list[Any], first: tuple[str, ...] = ()) -> list[Any]:
    """Transforms with a Keep at their end; as they are where there is one, or one is not this package's."""
    names = [str(s.get("target")).removeprefix(_TRANSFORMS) for s in steps if isinstance(s, dict)]
    if len(names) < len(steps) or any(n not in _MADE and n != "ChooseCaption" for n in names):
        return steps
    keys = [*first, *(k for n in names for k in _MADE.get(n, ()))]
    soft = any(s.get("soft") for s in steps if s["target"] == f"{_TRANSFORMS}Label")
    keys = list(dict.fromkeys([*keys, *(["scores"] if soft else [])]))
    return [*steps, {"target": f"{_TRANSFORMS}Keep", "keys": keys}]
