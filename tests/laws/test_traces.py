"""Laws of what a model is traced to, over the models of all configs (see tests/laws/cases.py)."""

import pytest

from simvlm_jax.nn.sizes import Compute
from tests.laws import traces
from tests.laws.cases import SMALLEST, batch_of, model_of


@pytest.mark.parametrize("variant", [v for v in SMALLEST if hasattr(model_of(v), "compute")])
def test_no_sum_is_written_in_bfloat16(variant):
    traces.gradient_sums_nothing_in_bfloat16(model_of(variant, Compute("bfloat16", scan=False)), batch_of(variant))


@pytest.mark.parametrize("variant", SMALLEST)
def test_masks_are_of_the_kinds_they_say(variant, monkeypatch):
    """Of images with text; and where some have no image."""
    batch = batch_of(variant)
    batches = [batch, traces.without_some_images(batch)] if "image" in batch["pairs"] else [batch]
    traces.masks_are_of_their_kinds(model_of(variant, Compute("float32", scan=False)), batches, monkeypatch)
