"""Packed = unpacked: texts that share a row are learned as in rows of their own, or the model refuses such rows by name.

Models are those of small configs; those learn from documents whose config has a part of them in one of its variants.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.families.text_layout import lay_out_text
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.run.load import build_model
from tests.conftest import ROOT, VARIANTS
from tests.laws.traces import masks_in_losses
from tests.nn.kinds import check_kind

T = 24
TEXTS = [(9, 4, 7), (24,), (1, 2, 3, 12), (), (5, 6)]
"""Pieces of the texts of each packed row: one is full, one empty."""


class _Tokenizer:
    vocabulary = V = Vocabulary(50, T)


def _models() -> tuple[dict, dict]:
    """({variant: small model}, those that learn from documents), each once."""
    configs = {v: load_config(str(ROOT / "configs" / v)) for v in VARIANTS}
    documents = {v.partition(":")[0] for v, c in configs.items() if c.data.parts.documents.rows}
    models, readers = {}, {}
    for variant, config in configs.items():
        if config.data.image_size > 64 or config.data.labels.size:
            continue  # small pictures stand for small models; a label is not a text to learn
        config.data.image_size = 32
        model = dataclasses.replace(
            build_model(config.model, 32, _Tokenizer(), ()), compute=Compute("float64", scan=False)
        )
        if hasattr(model, "stem_stages"):
            model = dataclasses.replace(model, stem_stages=0)  # text never sees the stem
        models.setdefault(model, variant)
        if variant.partition(":")[0] in documents:
            readers.setdefault(model, variant)
    return tuple({name: model for model, name in found.items()} for found in (models, readers))


SMALL, READERS = _models()
READERS["prefixlm.py:lm as one stack"] = dataclasses.replace(READERS["prefixlm.py:lm"], decoder_only=True)


def rows_of_texts() -> tuple[dict, dict]:
    """The same texts with the same prefixes as (packed rows, rows of their own); the last packed row weighs nothing."""
    draw, v = np.random.default_rng(0), _Tokenizer.V
    packed = {k: np.zeros((len(TEXTS), T), np.int32) for k in ("text", "position", "prefix_length")}
    packed |= {"segment": np.full((len(TEXTS), T), -1, np.int32), "weight": np.float32([1, 1, 2, 1, 0])}
    alone = {"text": [], "prefix_length": [], "weight": []}
    for row, sizes in enumerate(TEXTS):
        start = 0
        for number, size in enumerate(sizes):
            text = draw.integers(4, v.size, size).astype(np.int32)
            text[-1] = v.eos if size < T else text[-1]  # a chunk has none
            prefix, here = draw.integers(size), np.s_[row, start : (start := start + size)]
            packed["text"][here], packed["segment"][here] = text, number
            packed["position"][here], packed["prefix_length"][here] = np.arange(size), prefix
            alone["text"].append(np.pad(text, (0, T - size)))
            alone["prefix_length"].append(prefix)
            alone["weight"].append(packed["weight"][row])
    alone = {k: np.asarray(x, packed[k].dtype) for k, x in alone.items()}
    lengths = np.asarray([size for sizes in TEXTS for size in sizes])
    alone["text_mask"] = np.arange(T) < lengths[:, None]
    packed["text_mask"] = packed["target_mask"] = packed["segment"] >= 0
    for rows in (packed, alone):
        rows["seed"] = np.arange(len(rows["text"]), dtype=np.uint32)
    return packed, alone


def learned(model, params, rows):
    """(gradients, {name: (sum, count)}) of documents."""

    def loss(params):
        given = dict(rngs=jax.random.key(0), step=0, train=True)
        _, terms, aux = model.per_example(params, {}, {"documents": rows}, **given)
        return sum(t.weight * t.sum for t in terms.values()), {k: t[:2] for k, t in {**terms, **aux}.items()}

    return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))


def refused(model, rows, part: str = "documents") -> str:
    """Why a model does not learn from rows, which it says before it looks at a parameter."""
    with pytest.raises(ValueError) as error:
        model.per_example({}, {}, {part: rows}, rngs=jax.random.key(0), step=0, train=True)
    return str(error.value)


def shapes(model):
    rows = {k: v[:1] for k, v in rows_of_texts()[1].items()}
    rows |= {"image": np.zeros((1, 1, 32, 32, 3), np.uint8)}
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), {"pairs": rows})[0])


def drawn(model):
    """Parameters in float64, all of them off their initial values."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: draw.normal(size=x.shape) * 0.3 / max(x.shape[0], 1) ** 0.5, shapes(model))


@pytest.mark.parametrize("name", READERS)
def test_packed_is_unpacked(name, float64):
    model, (packed, alone) = READERS[name], rows_of_texts()
    params = drawn(model)
    expected, theirs = learned(model, params, alone)
    try:
        gradients, found = learned(model, params, packed)
    except ValueError as error:
        assert "`segment`" in str(error) and "config.data.parts.documents.packed=False" in str(error)
        assert getattr(model, "objective", "") not in ("prefix_lm", "lm")
        return
    assert found.keys() == theirs.keys() and found["documents_loss"][1] > 20
    for term in found:
        np.testing.assert_allclose(found[term], theirs[term], rtol=1e-10)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * largest), gradients, expected)


@pytest.mark.parametrize("name", ["prefixlm.py", "prefixlm.py:decoder_only"])
def test_the_masks_of_packed_rows_are_of_the_kinds_they_say(name, monkeypatch):
    model = dataclasses.replace(READERS[name], compute=Compute(scan=False))
    [made] = masks_in_losses(model, [{"documents": rows_of_texts()[0]}], monkeypatch)
    assert {m.kind.order for m in made} == ({"prefix"} if model.decoder_only else {"full", "causal"})
    for mask in made:
        check_kind(mask)
        texts = np.asarray(mask.query.segment)[:, :, None], np.asarray(mask.key.segment)[:, None]
        assert not (np.asarray(mask.visible) & (texts[0] != texts[1])).any()
        assert np.asarray(mask.query.segment).max() == 3


@pytest.mark.parametrize("name", SMALL)
def test_no_model_takes_packed_texts_beside_images_in_silence(name):
    packed, _ = rows_of_texts()
    rows = {**packed, "image": np.zeros((len(TEXTS), 1, 32, 32, 3), np.uint8)}
    assert "`segment`" in refused(SMALL[name], rows, "pairs")


def test_what_is_asked_of_one_text_refuses_packed_rows():
    packed, _ = rows_of_texts()
    for model in (READERS["prefixlm.py"], READERS["prefixlm.py:decoder_only"]):
        for ask in (lambda m: m.prefill({}, {}, packed, 4), lambda m: m.score_text({}, {}, packed)):
            with pytest.raises(ValueError, match=r"one text per row, and these rows are packed.*`segment`"):
                ask(model)
        labelled = dataclasses.replace(model, classes=3)
        assert "one text per row" in refused(labelled, {**packed, "label": np.zeros(len(TEXTS), np.int32)})
    row_lengths = {**packed, "prefix_length": np.zeros(len(TEXTS), np.int32)}
    assert "one prefix_length per row" in refused(READERS["prefixlm.py"], row_lengths)
    unseeded = {k: v for k, v in packed.items() if k != "seed"}
    assert "`segment`" in refused(READERS["prefixlm.py:span"], unseeded)
    with pytest.raises(ValueError, match="span corruption needs one text per row"):
        lay_out_text(packed, "span_corruption", _Tokenizer.V)
    assert "prefix_length" in refused(READERS["prefixlm.py"], {k: v for k, v in packed.items() if k != "prefix_length"})
    assert "position" in refused(READERS["prefixlm.py:lm"], {k: v for k, v in packed.items() if k != "position"})


def test_a_slot_that_is_no_target_is_read_all_the_same():
    packed, _ = rows_of_texts()
    target = packed["target_mask"].copy()
    target[0, 4] = False
    for objective, prefix in (("lm", 0), ("prefix_lm", packed["prefix_length"])):
        whole = lay_out_text(packed, objective, _Tokenizer.V)
        less = lay_out_text({**packed, "target_mask": target}, objective, _Tokenizer.V)
        expected = packed["text_mask"] & (packed["position"] >= prefix)
        np.testing.assert_array_equal(whole.predicted, expected)
        np.testing.assert_array_equal(less.predicted, expected & target)
        np.testing.assert_array_equal(less.input_segment, whole.input_segment)
