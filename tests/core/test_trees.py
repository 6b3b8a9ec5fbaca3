"""Regex lists over parameters: the first match wins, and a pattern that does nothing is an error."""

import jax
import pytest

from simvlm_jax.core.trees import leaf_names, match

TREE = {"encoder": {"layer_0": {"query": 0, "scale": 0}}, "head": [0, 0]}


def test_names():
    assert leaf_names(TREE) == ["encoder/layer_0/query", "encoder/layer_0/scale", "head/0", "head/1"]


def test_first_match_wins():
    rules = [("scale$", "norm"), ("^encoder", "tower")]
    assert jax.tree.leaves(match(TREE, rules, "rest")) == ["tower", "norm", "rest", "rest"]


@pytest.mark.parametrize("pattern", ["decoder", "scale$"])
def test_idle_patterns(pattern):
    with pytest.raises(ValueError, match=r"optimizer\.decay: no parameter is left"):
        match(TREE, [("^encoder", 1.0), (pattern, 0.0)], 1.0, "optimizer.decay")
