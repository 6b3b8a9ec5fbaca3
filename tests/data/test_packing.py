"""Laws of packing: every example once an epoch, rows full but for what no example fits, segments and positions right."""

import numpy as np
import pytest

from simvlm_jax.data.packing import LayOutPacked, Packed, first_fit
from simvlm_jax.data.pipeline import Part, Pipeline
from simvlm_jax.data.transforms import BadTransforms, DrawPrefix, FixPrefix, Keep
from simvlm_jax.text.tokenizer import Tokenizer

KEYS = ("text", "text_mask", "target_mask", "segment", "position")


class Words:
    """Sentences of several lengths, some empty or broken, one longer than three rows."""

    def __len__(self):
        return 60

    def key(self, index):
        return f"w{index}"

    def __getitem__(self, index):
        if index == 7:
            raise ValueError("truncated")
        if index == 9:
            return {"key": self.key(index), "text": " "}
        return {"key": self.key(index), "text": f"number {index} " + "more " * (80 if index == 3 else index % 9)}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"number {i} of the words more more" for i in range(200)], 40, 32)


def test_first_fit_places_all_once_and_overfills_no_row():
    lengths = np.random.default_rng(0).integers(1, 33, 500)
    rows = first_fit(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(500))
    sizes = [lengths[row].sum() for row in rows]
    assert max(sizes) <= 32 and len(rows) <= 1.1 * lengths.sum() / 32 + 1
    assert first_fit([20, 20, 10], 32, window=1) == [[0], [1, 2]]  # the oldest is closed where none has room
    assert first_fit([20, 20, 10], 32, window=2) == [[0, 2], [1]]
    for bad in ([33], [0]):
        with pytest.raises(ValueError, match="does not fit a row of 32"):
            first_fit(bad, 32)


@pytest.mark.parametrize("chunked", [True, False])
def test_every_text_stands_once_an_epoch_beside_others(tokenizer, chunked):
    source = Words()
    packed = Packed(source, tokenizer, chunked=chunked)
    left = [i for i in range(60) if i not in (7, 9)]
    expected = {i: [*tokenizer.encode(source[i]["text"].strip()), tokenizer.vocabulary.eos] for i in left}
    pipeline = Pipeline([Part("documents", packed, [LayOutPacked(tokenizer), Keep(KEYS)], 1)], 0)
    found: dict[str, list] = {}
    for step in range(len(packed)):
        row = {k: v[0] for k, v in pipeline.batch(step)["documents"].items()}
        keys = pipeline.keys(step)["documents"][0].split("+")
        assert row["segment"].max() == len(keys) - 1
        for segment, key in enumerate(keys):
            mine = row["segment"] == segment
            assert (row["position"][mine] == np.arange(mine.sum())).all() and (np.diff(np.flatnonzero(mine)) == 1).all()
            found.setdefault(key, []).append(row["text"][mine].tolist())
        assert ((row["segment"] >= 0) == row["text_mask"]).all() and (row["target_mask"] == row["text_mask"]).all()
        assert (row["text"][~row["text_mask"]] == tokenizer.vocabulary.pad).all()
    assert set(found) == {f"w{i}" for i in left}
    for i in left:
        pieces = found[f"w{i}"]
        whole = expected[i] if chunked else expected[i][:32]
        assert sorted(pieces) == sorted(whole[a : a + 32] for a in range(0, len(whole), 32))
    assert len(found["w3"]) == (len(expected[3]) + 31) // 32 if chunked else 1
    assert len(packed) < 0.6 * len(left) and packed.understood.left_out["without a text to pack"] == 2


def test_each_text_of_a_packed_row_has_a_prefix_of_its_own(tokenizer):
    laid = LayOutPacked(tokenizer)({"pieces": [np.full(n, 5, np.int32) for n in (1, 4, 9)]}, None)
    for empty in (0.0, 0.5, 1.0):
        row = DrawPrefix(empty)(laid, np.random.default_rng(3))
        draw, expected = np.random.default_rng(3), []
        for n in (1, 4, 9):  # the draws that the texts would have as rows of their own, one after another
            alone = {"text_mask": np.arange(32) < n}
            expected += [DrawPrefix(empty)(alone, draw)["prefix_length"]] * n
        assert row["prefix_length"].dtype == np.int32
        assert row["prefix_length"].tolist() == expected + [0] * 18 and (empty < 1) == any(expected)
    assert FixPrefix()(laid, None)["prefix_length"].tolist() == [0] * 32
    whole = FixPrefix(whole=True)(laid, None)["prefix_length"]
    assert whole.tolist() == [0] + [3] * 4 + [8] * 9 + [0] * 18  # all but the end of each


def test_packed_rows_are_resumed_by_their_step(tokenizer):
    def made():
        packed = Packed(Words(), tokenizer)
        return Pipeline([Part("documents", packed, [LayOutPacked(tokenizer), Keep(KEYS)], 4)], 3)

    straight = list(made().iterate(0, 8, threads=1))
    for a, b in zip(straight[5:], made().iterate(5, 8, threads=4), strict=True):
        for key in (*KEYS, "id"):
            np.testing.assert_array_equal(a["documents"][key], b["documents"][key])


def test_a_config_packs_a_part_and_a_model_of_whole_rows_refuses_it(tmp_path):
    from configs import parts
    from simvlm_jax.core.parts import only_part
    from simvlm_jax.data import assemble

    (tmp_path / "d.txt").write_text("".join(f"document {i}\n" for i in range(300)))
    config = parts.base()
    config.text.update(length=64, vocabulary=60)
    config.data.parts.pairs.rows = 0
    config.data.parts.documents.update(rows=2, path=str(tmp_path / "d.txt"), packed=True)
    config.data.parts.documents.transforms = parts.packed_transforms()
    config.data.eval.path = "scenes/text"
    sources = assemble.part_sources(config.data)

    def first_batch():
        tokenizer = assemble.make_tokenizer(config.text, config.data.parts, sources)
        return assemble.make_pipeline(
            config.data, tokenizer, (), sources, batch_size=config.train.batch_size, seed=config.seed
        ).batch(0)

    batch = first_batch()
    assert (batch["documents"]["segment"].max(1) > 1).all() and batch["documents"]["text_mask"].mean() > 0.8
    config.data.parts.documents.transforms = parts.text_transforms()
    with pytest.raises(BadTransforms, match=r"Tokenize has no text in a packed example.*packed_transforms"):
        first_batch()
    with pytest.raises(
        ValueError, match=r"the rows of 'documents' are packed.*config\.data\.parts\.documents\.packed=False"
    ):
        only_part(batch, "documents", "Model")


def test_the_shapes_of_packed_and_interleaved_rows_are_known_without_data():
    from configs import parts
    from simvlm_jax.core.build import spec
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.data.shapes import StandIn, abstract_batch

    config = parts.base()
    config.model = {"images": 2}
    config.data.parts.documents.update(rows=6, packed=True)
    config.data.parts.documents.transforms = parts.packed_transforms()
    pixels = spec("simvlm_jax.data.transforms:Pixels", size=8)
    config.data.parts.pairs.transforms = (
        spec("simvlm_jax.data.interleaved:SplitAtImages"),
        spec("simvlm_jax.data.interleaved:Interleave", pixels=pixels, images=3, tokens=4),
        parts.keep("image", "image_mask", "image_index", "text", "text_mask", "target_mask"),
    )
    batch = abstract_batch(config.data, StandIn(Vocabulary(50, 32)), (), batch_size=config.train.batch_size)
    assert batch["pairs"]["image"].shape == (64, 3, 8, 8, 3) and batch["pairs"]["image_index"].shape == (64, 32)
    assert batch["documents"]["segment"].shape == (6, 32)
