"""Files of weights: every format reads as its own library does, and broken or hostile ones are one clear error each."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.formats import gguf_file, npz, pickled, safetensors_file
from simvlm_jax.interop.source import open_source
from simvlm_jax.interop.table import Mismatch, Row, Table, give, stacked, take, unstacked
from simvlm_jax.interop.transforms import (
    CONVOLUTION,
    NUMBER,
    SAME,
    SCALAR,
    TRANSPOSED,
    UNSQUEEZED,
    before,
    heads_bias,
    heads_in,
    heads_out,
    layered,
    packed,
    patches,
)

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("transform", "shape", "ours"),
    [
        (TRANSPOSED, (4, 6), [(6, 4)]),
        (CONVOLUTION, (4, 3, 2, 5), [(2, 5, 3, 4)]),
        (heads_out(3), (12, 5), [(5, 3, 4)]),
        (heads_in(3), (5, 12), [(3, 4, 5)]),
        (heads_bias(3), (12,), [(3, 4)]),
        (patches(2), (7, 3, 2, 2), [(12, 7)]),
        (before(2), (1, 1, 5), [(5,)]),
        (UNSQUEEZED, (5,), [(1, 5)]),
        (SCALAR, (1,), [()]),
        (NUMBER, (), [()]),
        (packed(*[heads_out(2)] * 3), (24, 5), [(5, 2, 4)] * 3),
        (layered(TRANSPOSED), (3, 4, 6), [(6, 4)] * 3),
    ],
)
def test_transforms_undo_each_other(transform, shape, ours):
    theirs = draw(*shape)
    made = transform.take(theirs)
    parts = made if isinstance(made, tuple) else (made,)
    assert [p.shape for p in parts] == ours
    np.testing.assert_array_equal(transform.give(*parts), theirs)


TABLE = Table(
    (Row("a.*.weight", "x/layer_*/kernel", TRANSPOSED), Row("b", ("y/one", "y/two"), packed(SAME, SAME))),
    dropped={"c.*": "a constant"},
    same={"d": "a.0.weight"},
    optional=("a.",),
)
SHAPES = {"x/layer_0/kernel": (3, 2), "x/layer_1/kernel": (3, 2), "y/one": (1,), "y/two": (1,)}


def weights(**changed):
    first = draw(2, 3)
    made = {"a.0.weight": first, "a.1.weight": draw(2, 3), "b": draw(2), "c.7": draw(1), "d": first, **changed}
    return {k: v for k, v in made.items() if v is not None}


def test_a_table_goes_both_ways():
    source = weights()
    found = take(TABLE, source, SHAPES, "here")
    assert found.dropped == {"c.7": "a constant", "d": "equals a.0.weight"}
    back = give(TABLE, found.arrays)
    assert set(back) == {"a.0.weight", "a.1.weight", "b"}
    for name, x in back.items():
        np.testing.assert_array_equal(x, source[name])
    pile = stacked(found.arrays, {"x/layers/kernel": (2, 3, 2), "y/one": (1,), "y/two": (1,)})
    assert pile["x/layers/kernel"].shape == (2, 3, 2)
    assert all((unstacked(pile)[k] == x).all() for k, x in found.arrays.items())


def test_a_beginning_may_be_missing():
    bare = {"0.weight": draw(2, 3), "1.weight": draw(2, 3), "b": draw(2)}
    assert set(take(TABLE, bare, SHAPES, "here").arrays) == set(SHAPES)


def test_all_that_is_wrong_is_told_at_once():
    broken = weights(**{"a.1.weight": draw(3, 3), "b": None, "e": draw(1), "d": draw(2, 3)})
    broken["a.0.weight"] = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(Mismatch) as e:
        take(TABLE, broken, SHAPES, "file.bin")
    told = str(e.value)
    assert "the weights of file.bin do not fit" in told
    assert "1 hold NaN or infinity:\n    a.0.weight (6 of 6 values)" in told
    assert "a.1.weight [3, 3], x/layer_1/kernel [3, 2]" in told
    assert "1 have no place in this model:\n    e [1]" in told
    assert "1 differ from the array that they must equal:\n    d (a.0.weight)" in told
    with pytest.raises(Mismatch, match=r"2 are missing:\n    y/one \[1\]\n    y/two"):
        take(TABLE, weights(b=None), SHAPES, "file.bin")
    with pytest.raises(Mismatch, match=r"1 are no floating-point numbers:\n    b \(int64\)"):
        take(TABLE, weights(b=np.asarray([1, 2])), SHAPES, "file.bin")


def test_twice_the_same_is_told():
    table = Table((Row("a", "x"), Row("b", "x")))
    with pytest.raises(Mismatch, match="1 are there twice:\n    x: a and b"):
        take(table, {"a": draw(1), "b": draw(1)}, {"x": (1,)}, "here")


# ---- safetensors ---------------------------------------------------------------------------------------------------


def test_safetensors_of_any_dtype_and_in_shards(tmp_path):
    import ml_dtypes

    arrays = {k: draw(3, 4).astype(t) for k, t in (("a", np.float32), ("b", np.float16), ("c", ml_dtypes.bfloat16))}
    for name, x in arrays.items():
        from safetensors.flax import save_file

        save_file({name: x}, str(tmp_path / f"{name}.safetensors"))
    places = {k: f"{k}.safetensors" for k in arrays}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = open_source(tmp_path).tensors
    assert {k: found.shape(k) for k in found} == dict.fromkeys(arrays, (3, 4))
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), x.astype(np.float32))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(BadFile, match=r"names 3 files, and b\.safetensors is not there"):
        open_source(tmp_path)


def test_an_index_cannot_lead_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(BadFile, match="is no index of weights"):
        open_source(tmp_path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors_file.write(path, {"a": draw(64, 64)}, {})
    whole = path.read_bytes()
    for size in (0, 4, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadFile, match="is not a whole safetensors file"):
            safetensors_file.read(path)


# ---- npz -----------------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    path = tmp_path / "w.npz"
    npz.write(path, {"params/img/kernel": draw(2, 3), "params/t": draw(1)})
    found = npz.read(path)
    assert {k: found.shape(k) for k in found} == {"params/img/kernel": (2, 3), "params/t": (1,)}
    np.testing.assert_array_equal(found["params/t"], np.load(path)["params/t"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadFile, match=r"is not a whole \.npz"):
        npz.read(path)


def test_an_npz_with_a_pickle_is_not_read(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.asarray([print], object))
    with pytest.raises(BadFile, match="holds Python objects, which only running code could read"):
        npz.read(tmp_path / "w.npz")


# ---- pickles -------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("inside", [Evil(), {"state_dict": {"a": Evil()}}, [1, {"b": Evil()}]])
def test_a_pickle_that_would_run_code_is_not_run(tmp_path, inside):
    data = pickle.dumps(inside)
    (tmp_path / "old.bin").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    for name in ("old.bin", "new.pt"):
        with pytest.raises(BadFile, match=r"its pickle names builtins\.exec, and only tensors are read"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_torch(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {"plain": x, "strided": x.permute(2, 0, 1), "part": x[1, 1:], "half": x.half(), "wide": x.bfloat16()}
    state |= {"number": torch.tensor(3.5), "empty": torch.zeros(0, 2), "count": torch.tensor(7)}
    whole = {"state_dict": {**state, "kept": torch.nn.Parameter(x)}, "epoch": 3, "names": ["a"]}
    path = tmp_path / "w.bin"
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    found = pickled.read(path)
    assert set(found) == {*state, "kept"}
    for name, expected in state.items():
        np.testing.assert_array_equal(
            np.asarray(found[name]).astype(np.float32), expected.float().numpy(), err_msg=name
        )
        assert found.shape(name) == tuple(expected.shape)
    data = path.read_bytes()
    for size in (3, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:size])
        with pytest.raises(BadFile, match=r"download it again|is no file of torch\.save|is not a whole file"):
            broken = pickled.read(path)
            [broken[k] for k in broken]


def test_torchscript_archives(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    torch.jit.trace(module, torch.zeros(2, 3)).save(str(tmp_path / "m.pt"))
    found = pickled.read(tmp_path / "m.pt")
    for name, x in module.state_dict().items():
        np.testing.assert_array_equal(found[name], x.numpy(), err_msg=name)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "w.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:8] if name.endswith("/data/0") else data)
    with pytest.raises(BadFile, match="reaches beyond the end of its storage"):
        pickled.read(tmp_path / "w.pt")["a"]


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def written_gguf(path, kinds):
    """A GGUF with an array of each type, quantised by its own library where it can."""
    import gguf
    from gguf import quants

    writer, expected = gguf.GGUFWriter(path, "llama"), {}
    for kind in kinds:
        type_, x = gguf.GGMLQuantizationType[kind], draw(4, 256)
        try:
            data = quants.quantize(x, type_)
        except NotImplementedError:  # of K-quants it only reads
            _, size = gguf.GGML_QUANT_SIZES[type_]
            data = RNG.integers(0, 60, (4, size), dtype=np.uint8)  # small scales, so that halves are finite
        expected[kind] = quants.dequantize(data, type_)
        writer.add_tensor(kind, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_gguf_of_every_type(tmp_path):
    expected = written_gguf(tmp_path / "w.gguf", gguf_file.TYPES)
    found = gguf_file.read(tmp_path / "w.gguf")
    assert set(found.types.values()) == set(gguf_file.TYPES) and found.metadata["general.architecture"] == "llama"
    for kind, x in expected.items():
        assert found.tensors.shape(kind) == (4, 256)
        np.testing.assert_array_equal(found.tensors[kind], x, err_msg=kind)


def q4_1(block):
    """The 32 numbers of a block of 20 bytes: a scale and a least value in half precision, and 4 bits each."""
    scale, least = np.frombuffer(block[:4], np.float16).astype(np.float32)
    bits = np.frombuffer(block[4:], np.uint8)
    return np.concatenate([bits & 15, bits >> 4]).astype(np.float32) * scale + least


def test_q4_1_by_hand(tmp_path):
    written_gguf(tmp_path / "w.gguf", ["Q4_1"])
    import gguf

    raw = gguf.GGUFReader(tmp_path / "w.gguf").tensors[0].data.reshape(-1, 20)
    by_hand = np.stack([q4_1(block.tobytes()) for block in raw]).reshape(4, 256)
    np.testing.assert_array_equal(gguf_file.read(tmp_path / "w.gguf").tensors["Q4_1"], by_hand)


def test_broken_ggufs(tmp_path):
    path = tmp_path / "w.gguf"
    written_gguf(path, ["F32", "Q5_0"])
    with pytest.raises(BadFile, match="Q5_0 is of type Q5_0; those that are read are F32, F16"):
        gguf_file.read(path)
    written_gguf(path, ["F32"])
    whole = path.read_bytes()
    for size in (2, 30, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(BadFile, match="GGUF"):
            gguf_file.read(path)
    strange = bytearray(whole)
    place = whole.index(b"F32") + 3 + 4 + 16  # after the name: the number of axes, the axes, then the type
    strange[place : place + 4] = (250).to_bytes(4, "little")
    path.write_bytes(bytes(strange))
    with pytest.raises(BadFile, match="of a type that is not known"):
        gguf_file.read(path)


# ---- sources -------------------------------------------------------------------------------------------------------


def test_a_source_is_named_or_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; name a file of weights"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds none: a file that ends in"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadFile, match=r"ends in none of \.safetensors"):
        open_source(tmp_path / "notes.txt")
    for name in ("a.npz", "b.npz"):
        npz.write(tmp_path / name, {"x": draw(1)})
    with pytest.raises(FileNotFoundError, match=r"holds 2 \(a\.npz, b\.npz\); name one"):
        open_source(tmp_path)
