"""Every field of every config refuses what it cannot be, by its full name, before data is read or anything is compiled."""

import json
import math
import re

import pytest

from simvlm_jax.core.build import check_specs, load_config, variants_of
from simvlm_jax.core.schema import BadValue, check
from simvlm_jax.run import schema
from simvlm_jax.run.directory import recorded
from simvlm_jax.train.optimizer import Optimizer
from tests.conftest import ROOT

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("parts", "__init__"))
NEGATIVE = ("mesh.", "start_bias", "length_penalty", ".bounds")
"""Where a number below 0 may stand."""


def checked(config):
    check(recorded(config), schema.Config, "config")
    check_specs(config)


def leaves(value, path=()):
    """(path, plain value) of a config."""
    if hasattr(value, "items"):
        for k, v in value.items():
            yield from leaves(v, (*path, k))
    elif isinstance(value, list | tuple) and any(hasattr(v, "items") for v in value):
        for i, v in enumerate(value):
            yield from leaves(v, (*path, i))
    else:
        yield path, value


def put(config, path, value):
    for part in path[:-1]:
        config = config[part]
    config[path[-1]] = value


def name_of(path):
    out = "config"
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}"
    return out


def wrong_values(path, value):
    """Values of another kind, and numbers out of range."""
    if isinstance(value, bool):
        return ["yes", 3]
    if isinstance(value, int):
        return ["many", 1.5, *([] if any(n in name_of(path) for n in NEGATIVE) else [-7])]
    if isinstance(value, float):
        return ["much", math.nan, *([] if any(n in name_of(path) for n in NEGATIVE) else [-7.0])]
    if isinstance(value, str):
        return [5, [1]]
    return [{"a": 1}]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_wrong_values_are_refused_by_the_name_of_their_field(path):
    variants = variants_of(str(path))
    tried = set()
    for variant in variants:
        config = load_config(f"{path}:{variant}" if variant else str(path))
        checked(config)
        for where, value in list(leaves(config)):
            if where[-1] == "target" or (where, type(value)) in tried:
                continue
            tried.add((where, type(value)))
            for wrong in wrong_values(where, value):
                broken = json.loads(json.dumps(recorded(config)))
                put(broken, where, wrong)
                with pytest.raises(ValueError) as caught:
                    check(broken, schema.Config, "config")
                    check_specs(broken)
                assert name_of(where) in str(caught.value), (where, wrong, str(caught.value))
    assert len(tried) > 60


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.b1", 2.0), ("optimizer.ema", 2.0), ("model.dropout", 2.0), ("seed", 2**70), ("text.length", 10**6),
        ("checkpoint.latest", 0), ("train.batch_size", 0), ("train.accumulate", 0), ("data.quarantine", 1.5), ("data.threads", 0),
        ("data.held_out", 0.0), ("train.steps", 0), ("eval.batch_size", 0),
    ],
)  # fmt: skip
def test_values_out_of_range(field, value):
    config = load_config(str(ROOT / "configs" / "prefixlm.py"))
    with config.ignore_type():
        put(config, field.split("."), value)
    with pytest.raises(BadValue, match=f"config.{field} is"):
        checked(config)


@pytest.mark.parametrize(
    ("field", "value", "place", "message"),
    [
        ("optimizer.decay", (("bias", 0.0), ("(", 0.0)), "[1][0]", r"'\(': it is no regular expression \(missing \), "),
        ("optimizer.multipliers", (("a**", 0.1),), "[0][0]", r"'a\*\*': .*multiple repeat"),
        ("optimizer.bounds", (("[", (0.0, 1.0)),), "[0][0]", r"'\[': .*unterminated character set"),
        ("train.trainable", (("?", True),), "[0][0]", r"'\?': .*nothing to repeat"),
        ("train.trainable", (("(" * 20_000, True),), "[0][0]", "it nests too deep|missing "),
        ("train.init_from", ({"run": "r", "map": (("(", None),)},), "[0].map[0][0]", "it is no regular expression"),
        ("train.init_from", ({"run": "r", "map": (("a", r"\2"),)},), "[0].map[0][1]", "it cannot replace 'a' "),
    ],
)
def test_patterns_are_compiled_before_anything_is_made(field, value, place, message):
    config = load_config(str(ROOT / "configs" / "prefixlm.py"))
    put(config, field.split("."), value)
    with pytest.raises(BadValue, match=re.escape(f"config.{field}{place} is ") + f".*({message})"):
        checked(config)


def test_an_optimizer_that_is_made_by_hand_compiles_its_patterns():
    with pytest.raises(BadValue, match=r"^Optimizer.decay\[0\]\[0\] is '\(': it is no regular expression"):
        Optimizer(decay=(("(", 0.0),))


def test_a_target_that_is_none():
    config = load_config(str(ROOT / "configs" / "prefixlm.py"))
    for target in ("simvlm_jax.models.simvlm:SIZES", "simvlm_jax.models.simvlm:Nothing", "nowhere:X", "x"):
        config.model.target = target
        with pytest.raises(ValueError, match="cannot be imported"):
            checked(config)


def test_an_empty_path_of_data_is_not_the_current_folder():
    config = load_config(str(ROOT / "configs" / "prefixlm.py"))
    config.data.parts.pairs.path = ""
    with pytest.raises(BadValue, match=r"config\.data\.parts\.pairs\.path is '': expected text that is not empty"):
        checked(config)
