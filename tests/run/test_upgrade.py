"""The config.json of an earlier release is read as this one would have written it.

tests/golden/older_data_sections.json holds `data` as releases before named parts recorded it; it is never written anew.
"""

import json

import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.core.schema import check
from simvlm_jax.run import schema
from simvlm_jax.run.directory import recorded
from simvlm_jax.run.upgrade import upgraded
from tests.conftest import ROOT

OLDER = json.loads((ROOT / "tests" / "golden" / "older_data_sections.json").read_text())


@pytest.mark.parametrize("name", OLDER)
def test_an_older_config_is_read_as_it_would_be_recorded_now(name):
    file, _, variant = name.partition(":")
    now = recorded(load_config(f"{ROOT / 'configs' / file}.py{':' + variant if variant else ''}"), variant)
    found = upgraded({**now, "data": OLDER[name]})
    check(found, schema.Config, "config")
    assert found == now and found["data"] != OLDER[name]
    assert upgraded(now) == now


def test_transforms_of_another_package_are_left_for_their_owner_to_end():
    steps = [{"target": "theirs:Read"}]
    found = upgraded({"data": {"train": {"path": "x", "transforms": steps}}})
    assert found["data"]["parts"]["pairs"]["transforms"] == steps


def test_a_suite_of_another_package_keeps_its_fields():
    """Even where its transforms are this package's."""
    steps = [{"target": "simvlm_jax.data.transforms:Tokenize", "field": "question"}]
    old = {"eval": {"suites": {"theirs": {"target": "theirs:Suite", "transforms": steps, "images": False}}}}
    assert upgraded(old) == old


def test_the_decay_that_names_spelled_out_is_that_of_letters():
    old = [[r"(^|/)(scale|bias|\w*_bias)$|position|relative|logit_scale", 0.0]]
    own = [["bias$", 0.0]]
    assert upgraded({"optimizer": {"decay": old}})["optimizer"]["decay"] == []
    assert upgraded({"optimizer": {"decay": own}})["optimizer"]["decay"] == own


@pytest.mark.parametrize("name", ["vqa", "transfer"])
def test_transforms_of_suites_end_in_what_they_kept(name):
    now = recorded(load_config(f"{ROOT / 'configs' / 'finetune.py'}:{name}"))
    old = json.loads(json.dumps(now))
    for suite in old["eval"]["suites"].values():
        keep = suite["transforms"].pop()
        suite |= {} if "image" in keep["keys"] else {"images": False}
    assert upgraded(old) == now != old and upgraded(now) == now
