"""`simvlm embed`, `classify` and `search` on a run of a few steps: what they print, resume, refuse and find."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.cli import main
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.infer.engine import load_engine
from simvlm_jax.infer.search import approximate, exact
from simvlm_jax.jobs import embed as job
from simvlm_jax.jobs.embed import embed_parts, merge, read_vectors, stamp
from tests.conftest import ROOT, SCENES


@pytest.fixture(scope="module")
def run(clip_run):
    """A CLIP of four steps; only to be read."""
    return clip_run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "blue", "white")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_a_run_is_scored_by_pairs(run):
    entries = json.loads((run / "results.json").read_text())["entries"]
    assert {(e["suite"], e["control"]) for e in entries} == {("retrieval", None), ("retrieval", "blind")}
    assert 0 <= entries[0]["scores"]["text_to_image_r10"] <= 1 and "error" not in entries[0]


def test_classify(run, pictures, capsys):
    files = [str(pictures / f"{i}.png") for i in range(2)]
    assert main(["classify", str(run), *files, "--labels", "red circle, blue star,red circle", "--json"]) == 0
    found = lines(capsys)
    assert [f["image"] for f in found] == files
    for f in found:
        assert {t["label"] for t in f["labels"]} == {"red circle", "blue star"}
        assert sum(t["probability"] for t in f["labels"]) == pytest.approx(1, abs=1e-3)
        assert f["labels"][0]["probability"] >= f["labels"][1]["probability"]
    assert main(["classify", str(run), str(pictures / "broken.png"), files[0], "--labels", "a,b", "--top", "1"]) == 1
    said = capsys.readouterr()
    assert "broken.png" in said.err and said.out.count("%") == 1
    with pytest.raises(SystemExit):
        main(["classify", str(run), files[0], "--labels", "one"])
    for template in ("nothing", "a {colour} thing", "{0} {1}", "{name.foo}", "{name[x]}"):
        assert main(["classify", str(run), files[0], "--labels", "a,b", "--template", template]) == 1
        assert f"template {template!r} must have one place for the name" in capsys.readouterr().err


def test_a_captioner_classifies_by_likelihood(finished_run, pictures, capsys):
    assert (
        main(["classify", str(finished_run), str(pictures / "0.png"), "--labels", "red circle,blue star", "--json"])
        == 0
    )
    assert sum(t["probability"] for t in lines(capsys)[0]["labels"]) == pytest.approx(1, abs=1e-3)


def test_embed_and_search(run, pictures, tmp_path, capsys):
    out = tmp_path / "x.npz"
    files = sorted(map(str, pictures.iterdir()))
    assert main(["embed", str(run), *files, "--out", str(out), "--json"]) == 1  # one is no picture
    said = capsys.readouterr()
    assert json.loads(said.out)["vectors"] == 3 and "broken.png" in said.err
    vectors, keys, about = read_vectors(out)
    assert list(keys) == files[:3] and about["of"] == "images" and not (tmp_path / "x.npz.parts").exists()
    assert main(["embed", str(run), *files, "--out", str(out), "--json"]) == 1  # made before: nothing is done again
    said = capsys.readouterr()
    assert "holds these 3 vectors already" in said.err and json.loads(said.out)["errors"] == 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (
        main(["search", str(run), "--index", str(out), "a red circle", "--like", files[1], "--top", "2", "--json"]) == 0
    )
    text, picture = lines(capsys)
    engine, _ = load_engine(str(run))
    alike = (vectors @ engine.embed_texts(["a red circle"]).values[0]).tolist()
    assert text["found"][0]["key"] == files[int(np.argmax(alike))] and len(text["found"]) == 2
    assert text["found"][0]["score"] == pytest.approx(max(alike), abs=1e-3)
    assert picture["found"][0] == {"key": files[1], "score": pytest.approx(1, abs=1e-3)}
    texts = tmp_path / "texts.txt"
    texts.write_text("a red circle\n\na blue star\n")
    assert main(["embed", str(run), "--texts", str(texts), "--out", str(tmp_path / "t.npz")]) == 0
    np.testing.assert_allclose(
        read_vectors(tmp_path / "t.npz")[0][0], engine.embed_texts(["a red circle"]).values[0], atol=1e-6
    )
    assert main(["search", str(run), "a red circle", "--index", str(tmp_path / "t.npz")]) == 1
    assert "holds vectors of texts" in capsys.readouterr().err
    assert main(["search", str(run), "--like", files[3], "--index", str(out)]) == 1
    assert "broken.png: " in capsys.readouterr().err


def test_vectors_are_those_of_what_is_there_now(run, pictures, tmp_path, capsys):
    """Another folder of the same names, a picture that was mended, and one that failed at first."""
    for folder, name in (("a", "0.png"), ("b", "1.png")):
        (tmp_path / folder / "photos" / "dog").mkdir(parents=True)
        (tmp_path / folder / "photos" / "dog" / "1.png").write_bytes((pictures / name).read_bytes())
    out, found = str(tmp_path / "x.npz"), []
    for folder in "ab":
        assert main(["embed", str(run), "--data", str(tmp_path / folder / "photos"), "--out", out]) == 0
        found.append(read_vectors(tmp_path / "x.npz")[0])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    dog = tmp_path / "b" / "photos" / "dog" / "1.png"
    dog.write_bytes(b"no picture")
    assert main(["embed", str(run), "--data", str(tmp_path / "b" / "photos"), "--out", out]) == 1
    assert "none of 1 pictures could be read" in capsys.readouterr().err
    dog.write_bytes((pictures / "1.png").read_bytes())
    assert main(["embed", f"{run}/", "--data", str(tmp_path / "b" / "photos"), "--out", out]) == 0
    np.testing.assert_array_equal(read_vectors(tmp_path / "x.npz")[0], found[1])
    parts = tmp_path / "x.npz.parts"
    parts.mkdir()  # as if the process had been killed between the file and the end of its parts
    (parts / "manifest.json").write_text(json.dumps({**read_vectors(tmp_path / "x.npz")[2], "rows": 512}))
    assert main(["embed", str(run), "--data", str(tmp_path / "a" / "photos"), "--out", out]) == 0


def test_vectors_beside_their_pictures(run, pictures, tmp_path, capsys):
    """What is written into the folder that is read is not taken for a change of it; shards of one folder agree."""
    for i in range(3):
        (tmp_path / "dog").mkdir(exist_ok=True)
        (tmp_path / "dog" / f"{i}.png").write_bytes((pictures / f"{i}.png").read_bytes())
    words = ["embed", str(run), "--data", str(tmp_path), "--out", str(tmp_path / "x.npz"), "--part", "1"]
    for shard in range(3):
        assert main([*words, "--shard", f"{shard}/3"]) == 0
    assert len(read_vectors(tmp_path / "x.npz")[0]) == 3 and not (tmp_path / "x.npz.parts").exists()
    capsys.readouterr()
    assert main(words) == 0 and "holds these 3 vectors already" in capsys.readouterr().err


def test_the_stamp_of_what_is_read(tmp_path):
    out = tmp_path / "x.npz"
    for name in ("a/0.tar", "b/0.tar", "t.csv", "1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def changed(path, file):
        before = stamp(str(tmp_path / path), out)
        (tmp_path / file).write_text("another size")
        return stamp(str(tmp_path / path), out) != before

    assert changed("*/0.tar", "a/0.tar") and changed("t.csv", "1.png") and changed("a/0.tar", "a/0.tar")
    assert not changed(".", "x.npz") and not changed(".", ".hidden") and not changed("a/0.tar", "1.png")
    assert stamp("scenes/captions", out) == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--texts", "t.txt", "--shard", "1/2"], "--part and --shard are for pictures"),
        (["x.png", "--split", "test"], "--split is a split of --data"),
        (["x.png", "--out", "."], "is a folder"),
    ],
)
def test_options_that_would_be_ignored_are_refused(run, words, why, capsys):
    with pytest.raises(SystemExit):
        main(["embed", str(run), *words, *(() if "--out" in words else ("--out", "y.npz"))])
    assert why in capsys.readouterr().err


def test_cut_and_empty_queries_are_told(run, pictures, tmp_path, capsys):
    assert main(["embed", str(run), str(pictures / "0.png"), "--out", str(tmp_path / "x.npz")]) == 0
    assert main(["search", str(run), "a red circle " * 40, "--index", str(tmp_path / "x.npz")]) == 0
    assert "1 of the texts lost their end, at 24 pieces" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", str(run), " ", "--index", str(tmp_path / "x.npz")])


@pytest.mark.parametrize("axes", [(5,), (1, 128)])
def test_an_index_of_vectors_of_another_width_is_refused(run, pictures, tmp_path, capsys, axes):
    assert main(["embed", str(run), str(pictures / "0.png"), "--out", str(tmp_path / "x.npz")]) == 0
    vectors, keys, about = read_vectors(tmp_path / "x.npz")
    made = np.zeros((1, *axes), np.float32)
    job.write_arrays(tmp_path / "y.npz", embeddings=made, keys=keys, about=np.asarray(json.dumps(about)))
    for asked in (["a cat"], ["--like", str(pictures / "0.png")]):
        assert main(["search", str(run), *asked, "--index", str(tmp_path / "y.npz")]) == 1
        told = f"holds vectors [N, {', '.join(map(str, axes))}], and {run} makes [N, {vectors.shape[1]}] of N pictures"
        assert told in capsys.readouterr().err


def test_an_index_of_other_weights_is_refused(run, tmp_path, capsys):
    about = np.asarray(json.dumps({"run": "elsewhere", "step": 7, "weights": "0", "of": "images"}))
    job.write_arrays(
        tmp_path / "x.npz", embeddings=np.eye(3, dtype=np.float32), keys=np.asarray(["a", "b", "c"]), about=about
    )
    assert main(["search", str(run), "a cat", "--index", str(tmp_path / "x.npz")]) == 1
    assert "made by other weights (elsewhere, step 7)" in capsys.readouterr().err
    (tmp_path / "y.npz").write_bytes(b"no")
    assert main(["search", str(run), "a cat", "--index", str(tmp_path / "y.npz")]) == 1
    assert "is not a file of vectors" in capsys.readouterr().err
    assert main(["search", str(run), "a cat", "--index", str(tmp_path / "z.npz")]) == 1
    assert "make one with: simvlm embed" in capsys.readouterr().err


def test_shards_and_resumption(run, tmp_path, monkeypatch, capsys):
    """Three shards that are started one after the other, one of them twice, make what one process makes."""
    base = ["embed", str(run), "--data", SCENES, "--split", "test", "--part", "5"]
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    assert main([*base, "--out", str(whole)]) == 0
    for shard in ("0/3", "2/3", "0/3"):
        assert main([*base, "--out", str(parts), "--shard", shard]) == 0
        assert not parts.exists()
    made = len(list((tmp_path / "parts.npz.parts").glob("part-*.npz")))
    assert 0 < made < 7
    assert main([*base, "--out", str(parts), "--shard", "1/3"]) == 0
    a, b = read_vectors(whole), read_vectors(parts)
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    capsys.readouterr()

    def overtaken(source, pixels, embed, folder, about, rows, mine, chunk):
        """The other shards end, and the folder with them, just as this one, started again, begins."""
        embed_parts(source, pixels, embed, folder, about, rows, chunk=chunk)
        merge(folder, tmp_path / "late.npz")
        raise FileNotFoundError("the folder is gone")

    with monkeypatch.context() as patch:
        patch.setattr(job, "embed_parts", overtaken)
        assert main([*base, "--out", str(tmp_path / "late.npz"), "--shard", "1/3"]) == 0
    assert f"{len(a[0])} vectors in" in capsys.readouterr().out
    np.testing.assert_array_equal(read_vectors(tmp_path / "late.npz")[0], a[0])
    assert main([*base, "--out", str(tmp_path / "q.npz"), "--shard", "0/3"]) == 0
    capsys.readouterr()
    assert main([*base[:-1], "6", "--out", str(tmp_path / "q.npz")]) == 1
    assert "made otherwise (rows differs)" in capsys.readouterr().err


def test_a_part_that_is_there_is_not_made_again(tmp_path):
    source = open_source(SCENES, "test")
    asked = []

    def vectors(images):
        asked.append(len(images))
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    def broken(images):
        if sum(asked) >= 8:
            raise KeyboardInterrupt
        return vectors(images)

    how = dict(folder=tmp_path / "parts", about={}, rows=8, chunk=4)
    with pytest.raises(KeyboardInterrupt):
        embed_parts(source, Pixels(16), broken, **how)
    assert merge(how["folder"], tmp_path / "x.npz") is None
    assert embed_parts(source, Pixels(16), vectors, **how) == []
    assert merge(how["folder"], tmp_path / "x.npz") == len(source)
    assert sum(asked) == len(source) and not how["folder"].exists()
    assert merge(how["folder"], tmp_path / "x.npz") is None  # as for whoever comes second


def test_a_process_that_begins_between_two_looks_at_the_folder(tmp_path, monkeypatch):
    """Another writes the manifest and its first part just after this one has found no manifest: neither is in the way."""
    source = open_source(SCENES, "test")
    how = dict(embed=lambda images: images.reshape(len(images), -1).astype(np.float32), folder=tmp_path / "parts")
    exists, begun = Path.exists, []

    def late(path, **how_to_look):
        found = exists(path, **how_to_look)
        if path.name == "manifest.json" and not begun:
            begun.append(path)
            embed_parts(source, Pixels(16), about={}, rows=8, mine=lambda part: part == 0, **how)
        return found

    monkeypatch.setattr(Path, "exists", late)
    assert embed_parts(source, Pixels(16), about={}, rows=8, mine=lambda part: part != 0, **how) == []
    assert begun and merge(how["folder"], tmp_path / "x.npz") == len(source)


def test_processes_that_begin_and_end_together(tmp_path):
    """Eight at once share the manifest, and one of them makes the file."""
    import subprocess
    import sys

    code = """
import sys, numpy as np
from pathlib import Path
from simvlm_jax.jobs.embed import FileList, embed_parts, merge
folder, i = Path(sys.argv[1]), int(sys.argv[2])
class Source(FileList):
    def __getitem__(self, index): return {"image": np.full((1, 1, 1, 3), index, np.uint8)}
    def __repr__(self): return "numbers"
source = Source([str(n) for n in range(64)])
embed = lambda images: images.reshape(len(images), -1).astype(np.float32)
embed_parts(source, lambda e, _: e, embed, folder / "parts", {}, 2, lambda part: part % 8 == i)
print(merge(folder / "parts", folder / "x.npz"))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for i in range(8)
    ]
    said = [p.communicate(timeout=120)[0].strip() for p in processes]
    assert all(p.returncode == 0 for p in processes) and sorted(said) == ["64", *["None"] * 7]
    vectors, keys, _ = read_vectors(tmp_path / "x.npz")
    assert vectors[:, 0].astype(int).tolist() == list(range(64)) == [int(k) for k in keys]


@pytest.mark.parametrize("top", [1, 5, 700])
def test_the_exact_search_is_a_sort(run, top, monkeypatch):
    engine, _ = load_engine(str(run))
    monkeypatch.setattr("simvlm_jax.infer.search.BLOCK", 100)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 128)).astype(np.float32) for n in (250, 3))
    queries[0] = 2 * vectors[-1]  # whose block is filled up with copies of it
    scores, places = exact(engine, vectors, queries, top)
    everything = queries @ vectors.T
    order = np.argsort(-everything, axis=1)[:, :top]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_allclose(scores, np.take_along_axis(everything, order, axis=1), atol=1e-4)


def test_the_approximate_search_agrees_and_its_graph_is_kept(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = tmp_path / "x.npz"
    index.write_bytes(b"")
    for _ in range(2):
        _, places = approximate(vectors, vectors[:50], 5, index)
        assert (places[:, 0] == np.arange(50)).all()
    best = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :5]
    found = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(best, places, strict=True)])
    assert found > 0.95 and len(list(tmp_path.glob("x.npz.*.hnsw"))) == 1
    approximate(vectors[::-1], vectors[:5], 1, index)  # another index under the same name has a graph of its own
    assert len(list(tmp_path.glob("x.npz.*.hnsw"))) == 2
    with pytest.raises(ValueError, match="search exactly"):
        approximate(np.zeros((2, 3, 4)), vectors[:1], 1, index)
