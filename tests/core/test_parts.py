"""Parts of a batch: their order, what a model may learn from, and the names that fields had before."""

import jax
import numpy as np
import pytest

from simvlm_jax.core.build import assign, load_config
from simvlm_jax.core.parts import only_part, parts_of
from simvlm_jax.train.step import fingerprint
from tests.conftest import ROOT


def test_pairs_come_first_whatever_order_a_dict_has():
    rows = {"id": np.arange(4)}
    batch = {"documents": rows, "images": rows, "pairs": {"id": np.arange(4) + 7}}
    assert [name for name, _ in parts_of(batch)] == ["pairs", "documents", "images"]
    seen = fingerprint(batch)["samples"]
    assert seen == fingerprint(dict(reversed(batch.items())))["samples"] == jax.jit(fingerprint)(batch)["samples"]
    assert seen != fingerprint({**batch, "pairs": rows})["samples"]


def test_bare_rows_and_parts_that_nobody_learns_from_are_named():
    rows = {"id": np.arange(4)}
    with pytest.raises(ValueError, match=r"a batch is \{part: rows\}.*got id"):
        parts_of(rows)
    with pytest.raises(ValueError, match="learns from the part 'pairs', and this batch has documents"):
        only_part({"documents": rows}, "pairs", "Model")
    with pytest.raises(
        ValueError, match=r"alone, and this batch has documents too; set config\.data\.parts\.documents\.rows=0"
    ):
        only_part({"documents": rows, "pairs": rows}, "pairs", "Model")
    assert only_part({"pairs": rows}, "pairs", "Model") is rows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.train.path=x", r"config\.data\.train\.path is config\.data\.parts\.pairs\.path now"),
        ("data.documents.batch_size=8", r"config\.data\.parts\.documents\.rows now"),
        ("data.documents.path=x", r"config\.data\.parts\.documents\.path now"),
    ],
)
def test_a_field_of_an_earlier_release_is_named_as_it_is_now(old, new):
    with pytest.raises(ValueError, match=new):
        assign(load_config(str(ROOT / "configs" / "prefixlm.py")), old)
