"""What a config says, what a run supplies and what constructors have by default, at every depth."""

import dataclasses
import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from simvlm_jax.core.build import Fact, assign, build, spec

HERE = "tests.core.test_build"


@dataclasses.dataclass(frozen=True)
class Part:
    tokenizer: str = ""
    size: int = 1
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Whole:
    size: int
    part: Any = None
    parts: Any = ()
    named: Any = None
    classes: int = 0
    ratio: float = 0.5


def nested(**fields) -> ConfigDict:
    """One Part as a field, one in a list, one in a group, one inside another spec."""
    part = spec(f"{HERE}:Part", **fields)
    inner = spec(f"{HERE}:Whole", size=3, part=part)
    return spec(f"{HERE}:Whole", size=3, part=part, parts=(part, inner), named=ConfigDict({"a": part}))


def parts_of(made: Whole) -> list[Part]:
    return [made.part, made.parts[0], made.parts[1].part, made.named["a"]]


@pytest.mark.parametrize("load", [lambda c: c, lambda c: json.loads(c.to_json_best_effort())])
def test_the_run_goes_before_a_default_at_every_depth(load):
    """Although `spec` has written the default out; also of a config that is read back from a run directory."""
    made = build(load(nested()), tokenizer="run's", labels=("yes", "no"))
    assert [p.tokenizer for p in parts_of(made)] == ["run's"] * 4
    assert [p.labels for p in parts_of(made)] == [("yes", "no")] * 4
    assert [p.size for p in parts_of(made)] == [1] * 4  # which nobody supplies


@pytest.mark.parametrize("load", [lambda c: c, lambda c: json.loads(c.to_json_best_effort())])
def test_the_config_goes_before_the_run_at_every_depth(load):
    made = build(load(nested(tokenizer="own", labels=("maybe",))), tokenizer="run's", labels=("yes", "no"), size=9)
    assert [(p.tokenizer, p.labels, p.size) for p in parts_of(made)] == [("own", ("maybe",), 9)] * 4
    assert made.size == made.parts[1].size == 3  # has no default, so it is said


def test_a_field_that_the_command_line_sets_goes_before_the_run():
    config = nested()
    assign(config, "part.tokenizer=own")
    assert build(config, tokenizer="run's").part.tokenizer == "own"


def test_a_contradiction_names_both():
    """Of the outermost spec alone; where both agree, or the field stands at its default, there is none."""
    config = spec(f"{HERE}:Whole", size=3, part=spec(f"{HERE}:Part", size=7))
    with pytest.raises(
        ValueError, match=r"^config\.model\.size is 3, and config\.data\.size is 9; take config\.model\.size out"
    ):
        build(config, "config.model", size=Fact(9, "config.data.size"))
    made = build(config, "config.model", size=Fact(3, "config.data.size"), classes=Fact(5, "the answers"))
    assert (made.size, made.part.size, made.classes) == (3, 7, 5)
    with pytest.raises(ValueError, match=r"classes is 4, and the answers is 5"):
        build(spec(f"{HERE}:Whole", size=3, classes=4), classes=Fact(5, "the answers"))


def test_what_a_constructor_lacks_or_does_not_know_is_named():
    with pytest.raises(ValueError, match="needs size; its fields are size, part"):
        build(spec(f"{HERE}:Whole"))
    with pytest.raises(ValueError, match="has no field colour; its fields are tokenizer, size"):
        build(spec(f"{HERE}:Part", colour="red"), size=2)
