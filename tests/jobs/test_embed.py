"""Files of vectors: what is read is bounded by what is on the disk, and what cannot be written leaves nothing half written."""

import json
import os
import resource

import numpy as np
import pytest

from simvlm_jax.jobs.embed import FileList, embed_parts, merge, read_vectors, write_arrays

MEMBERS = dict(
    embeddings=np.ones((4, 3), np.float32), keys=np.asarray(list("abcd")), about=np.asarray(json.dumps({"run": "r"}))
)


class Numbers(FileList):
    """Pictures of one pixel."""

    def __getitem__(self, index):
        return {"image": np.full((1, 1, 1, 3), index, np.uint8)}

    def __repr__(self):
        return "numbers"


def made(folder, count=8, width=3):
    """Parts of so many vectors of that width."""
    return embed_parts(
        Numbers([str(i) for i in range(count)]),
        lambda example, _: example,
        lambda images: np.ones((len(images), width), np.float32),
        folder,
        {},
        rows=4,
    )


@pytest.fixture
def full_disk():
    """`full_disk(size)`: from then on no file can grow beyond that, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_compressed_vectors_are_refused_unread(tmp_path):
    write_arrays(tmp_path / "x.npz", **MEMBERS)
    assert len(read_vectors(tmp_path / "x.npz")[0]) == 4
    np.savez_compressed(tmp_path / "small.npz", **MEMBERS)  # pyright: ignore[reportArgumentType]
    np.savez_compressed(tmp_path / "bomb.npz", **{**MEMBERS, "keys": np.asarray(["x" * 2**20] * 4)})
    for name in ("small.npz", "bomb.npz"):
        with pytest.raises(ValueError, match=rf"{name}.*is compressed.*simvlm embed, or save it by numpy.savez"):
            read_vectors(tmp_path / name)


def test_a_member_that_claims_more_than_the_file_has(tmp_path):
    path = tmp_path / "x.npz"
    write_arrays(path, **MEMBERS)
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"about.npy"))  # in the central directory: compressed and real size
    path.write_bytes(data[: at + 20] + (10**9).to_bytes(4, "little") * 2 + data[at + 28 :])
    with pytest.raises(ValueError, match=r"about.npy claims 1,000,000,000 bytes"):
        read_vectors(path)


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path, full_disk):
    folder, out = tmp_path / "x.npz.parts", tmp_path / "x.npz"
    full_disk(16)
    with pytest.raises(OSError, match=r"manifest.json could not be written \(File too large\); free some space"):
        made(folder)
    assert list(folder.iterdir()) == []
    full_disk(16_000)
    with pytest.raises(OSError, match=r"part-00000.npz could not be written \(File too large\); free some space"):
        made(folder, width=10_000)
    assert [p.name for p in folder.iterdir()] == ["manifest.json"]
    full_disk(resource.RLIM_INFINITY)
    made(folder, width=10_000)
    full_disk(16_000)
    with pytest.raises(OSError, match=r"x.npz could not be written \(File too large\); free some space"):
        merge(folder, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz.parts"]
    full_disk(resource.RLIM_INFINITY)
    assert merge(folder, out) == 8 and read_vectors(out)[0].shape == (8, 10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_vectors_are_written_where_a_link_leads(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "x.npz").symlink_to("far/y.npz")
    made(tmp_path / "parts")
    assert merge(tmp_path / "parts", tmp_path / "x.npz") == 8
    assert (tmp_path / "x.npz").is_symlink() and os.listdir(tmp_path / "far") == ["y.npz"]
    assert len(read_vectors(tmp_path / "x.npz")[0]) == 8
