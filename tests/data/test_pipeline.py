"""The global sample sequence is a pure function of (seed, step), whatever hosts and threads; bad items are replaced."""

import numpy as np
import pytest

from simvlm_jax.data.pipeline import Part, Pipeline, Quarantine, TooManyBadExamples
from simvlm_jax.data.source import Cached, HashSplit
from simvlm_jax.data.transforms import BadTransforms, DrawPrefix, DrawSeed, Keep, Tokenize
from simvlm_jax.text.tokenizer import Tokenizer


class Words:
    """A source of numbered sentences, some of them bad."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, set(bad)

    def __len__(self):
        return self.count

    def key(self, index):
        return f"w{index}"

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError("truncated")
        return {"key": self.key(index), "text": f"number {index} of the words " + "more " * (index % 5)}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"number {i} of the words more more" for i in range(200)], 40, 32)


def pipeline(tokenizer, source=None, seed=0, mine=range, **kwargs):
    keep = Keep(("text", "text_mask", "prefix_length", "seed"))
    steps = [Tokenize(tokenizer), DrawPrefix(), DrawSeed(), keep]
    parts = [
        Part("pairs", source or Words(50), steps, 8),
        Part("documents", Words(30), steps, 4),
    ]
    return Pipeline(parts, seed, mine=mine, **kwargs)


def same(a, b):
    for k in a:
        if isinstance(a[k], dict):
            same(a[k], b[k])
        else:
            np.testing.assert_array_equal(a[k], b[k])


def test_resuming_is_starting_elsewhere_and_threads_do_not_matter(tokenizer):
    p = pipeline(tokenizer)
    straight = list(p.iterate(0, 12, threads=1))
    resumed = list(pipeline(tokenizer).iterate(7, 12, threads=4))
    for a, b in zip(straight[7:], resumed, strict=True):
        same(a, b)


def test_some_prefixes_are_empty_on_purpose(tokenizer):
    example = Tokenize(tokenizer)({"text": "number 1 of the words more more"}, None)
    draw = lambda empty: [  # noqa: E731
        DrawPrefix(empty)(example, np.random.default_rng(i))["prefix_length"] for i in range(400)
    ]
    pieces = example["text_mask"].sum()
    for empty in (0.0, 0.5, 1.0):
        share = np.mean(np.asarray(draw(empty)) == 0)
        assert share == pytest.approx(empty + (1 - empty) / pieces, abs=0.06) and max(draw(empty)) < pieces


def test_text_length_is_measured_on_the_corpus(tiny_config):
    from simvlm_jax.data import assemble

    config = tiny_config()
    sources = assemble.part_sources(config.data)
    source, tokenizer = sources["pairs"], assemble.make_tokenizer(config.text, config.data.parts, sources)
    longest = max(len(tokenizer.encode(c)) + 1 for i in range(len(source)) for c in source[i]["captions"])
    assert longest <= tokenizer.vocabulary.length < longest + 8 and tokenizer.vocabulary.length % 8 == 0
    config.text.length = 40
    assert assemble.make_tokenizer(config.text, config.data.parts, sources).vocabulary.length == 40


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_out_the_same_batch(tokenizer, hosts):
    whole = pipeline(tokenizer).batch(3)
    mine = [lambda n, i=i: range(i * n // hosts, (i + 1) * n // hosts) for i in range(hosts)]
    slices = [pipeline(tokenizer, mine=rows).batch(3) for rows in mine]
    for k in ("text", "prefix_length", "seed", "id"):
        for part in ("pairs", "documents"):
            np.testing.assert_array_equal(whole[part][k], np.concatenate([s[part][k] for s in slices]))


def test_seeds_differ_and_epochs_hold_every_example_once(tokenizer):
    a, b = pipeline(tokenizer, seed=0), pipeline(tokenizer, seed=1)
    assert a.batch(0)["pairs"]["id"].tolist() != b.batch(0)["pairs"]["id"].tolist()
    ids = np.concatenate([a.batch(s)["pairs"]["id"] for s in range(25)])  # 200 rows: four epochs of 50
    for epoch in range(4):
        assert sorted(ids[epoch * 50 : epoch * 50 + 50]) == list(range(50))
    assert ids[:50].tolist() != ids[50:100].tolist()


def test_mixture_is_exact_in_every_batch(tokenizer):
    for step in range(5):
        batch = pipeline(tokenizer).batch(step)
        assert set(batch) == {"pairs", "documents"}
        assert len(batch["pairs"]["text"]) == 8 and len(batch["documents"]["text"]) == 4


def test_keys_name_the_rows(tokenizer):
    p = pipeline(tokenizer)
    assert p.keys(3) == {name: [f"w{i}" for i in rows["id"]] for name, rows in p.batch(3).items()}


def test_prefix_leaves_a_target_and_is_uniform(tokenizer):
    p = pipeline(tokenizer)
    batches = [p.batch(s)["pairs"] for s in range(150)]
    prefix = np.concatenate([b["prefix_length"] for b in batches])
    size = np.concatenate([b["text_mask"].sum(1) for b in batches])
    assert (prefix >= 0).all() and (prefix < size).all()
    share = (prefix + 0.5) / size
    assert abs(share.mean() - 0.5) < 0.03  # three standard errors of a uniform mean over 1200 draws
    for b in batches[:20]:
        last = b["text_mask"].sum(1) - 1
        assert (b["text"][np.arange(8), last] == 2).all() and (b["text"][~b["text_mask"]] == 0).all()


def test_a_cut_text_has_no_eos(tokenizer):
    text = "number 1 of the words " * 20
    row = Tokenize(tokenizer)({"text": text}, np.random.default_rng(0))
    assert row["text_mask"].all() and 2 not in row["text"]
    assert row["cut"] == len(tokenizer.encode(text)) + 1 - len(row["text"])


def test_rows_that_are_cut_are_counted_by_part(tokenizer):
    short = Tokenizer(tokenizer.model, 16)
    made = pipeline(short)
    texts = [[Words(50)[int(k[1:])]["text"] for k in keys] for keys in made.keys(3).values()]
    expected = [sum(len(short.encode(t)) + 1 > 16 for t in part) for part in texts]
    batch = made.batch(3)
    assert all("cut" not in rows for rows in batch.values()) and 0 < expected[0] < 8
    lines = [
        f"{n} of {of} {part} drawn have a text that is cut"
        for n, of, part in ((expected[0], 8, "pairs"), (expected[1], 4, "documents"))
    ]
    assert made.report_cuts() == lines and made.report_cuts() == []
    whole = pipeline(tokenizer)
    whole.batch(3)
    assert whole.report_cuts() == []


def test_bad_items_are_replaced_counted_and_listed(tokenizer):
    rows = []
    source = Words(50, bad=[3, 7])
    p = pipeline(tokenizer, source, quarantine=Quarantine(0.5, rows.append))
    first = [p.batch(s) for s in range(13)]
    again = pipeline(tokenizer, Words(50, bad=[3, 7]), quarantine=Quarantine(0.5))
    for a, b in zip(first, [again.batch(s) for s in range(13)], strict=True):
        same(a, b)
    assert sorted(r["key"] for r in rows) == ["w3", "w7"] and "truncated" in rows[0]["error"]
    assert p.quarantine.bad >= 2 and not {3, 7} & set(np.concatenate([b["pairs"]["id"] for b in first]).tolist())


def test_too_many_bad_items_stop_the_run(tokenizer):
    p = pipeline(tokenizer, Words(50, bad=range(0, 50, 2)), quarantine=Quarantine(0.1))
    with pytest.raises(TooManyBadExamples, match="over the limit of 10"):
        for s in range(10):
            p.batch(s)


def test_hash_split_parts_the_keys():
    source = Words(2000)
    out, rest = HashSplit(source, 0.05, True), HashSplit(source, 0.05, False)
    keys = [{s.key(i) for i in range(len(s))} for s in (out, rest)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 2000 and 60 < len(out) < 140


def test_cached_source_reads_once():
    reads = []

    class Counting(Words):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    cached = Cached(Counting(5), [lambda e, rng: {**e, "seen": True}])
    assert cached[2] is cached[2] and cached[2]["seen"] and reads == [2]


def test_an_example_that_two_threads_make_at_once_is_one():
    """The one of the slower thread must not take the place of the other."""

    class Slow(Words):
        def __getitem__(self, index):
            if not meanwhile:
                meanwhile.append(None)
                meanwhile.append(cached[index])
            return super().__getitem__(index)

    meanwhile = []
    cached = Cached(Slow(5))
    assert cached[2] is meanwhile[1]


def test_a_list_of_transforms_ends_with_the_keys_it_keeps(tokenizer):
    steps = [Tokenize(tokenizer), DrawPrefix()]
    part = lambda *last: Pipeline([Part("pairs", Words(5), [*steps, *last], 2)], 0, Quarantine(1.0))  # noqa: E731
    with pytest.raises(BadTransforms, match=r"'pairs' end with DrawPrefix.*end them with Keep"):
        part()
    with pytest.raises(BadTransforms, match="'pairs' are none"):
        Part("pairs", Words(5), [], 2)
    assert set(part(Keep(("text",))).batch(0)["pairs"]) == {"text", "id", "weight"}
    with pytest.raises(
        BadTransforms, match=r"'seed', which no transform before it makes.*there are cut, key, prefix_length"
    ):
        part(Keep(("text", "seed"))).batch(0)  # no fault of the data, so nothing is replaced
    with pytest.raises(BadTransforms, match=r"'key', which is str as the data has it; add a transform"):
        part(Keep(("text", "key"))).batch(0)
    for keys in ((), ("text", "text"), ("text", "weight")):
        with pytest.raises(BadTransforms, match="name each key once"):
            Keep(keys)


def test_a_config_that_reads_no_text_has_shapes_and_rows_without_a_tokenizer():
    from simvlm_jax.cli.inspect_data import describe
    from simvlm_jax.core.build import load_config
    from simvlm_jax.data import assemble
    from simvlm_jax.data.shapes import abstract_batch, stand_in_tokenizer

    config = load_config("configs/coca.py:probe")
    config.data.parts.pairs.path = "scenes/classes-80_8_32_16"
    config.text = None
    tokenizer = stand_in_tokenizer(config.text, config.data)
    shapes = abstract_batch(config.data, tokenizer, ("a", "b"), batch_size=config.train.batch_size)
    assert set(shapes["pairs"]) == {"image", "label", "id", "weight"} and shapes["pairs"]["label"].shape == (128,)
    sources = assemble.part_sources(config.data)
    labels = assemble.make_labels(config.data, sources)
    rows = assemble.make_pipeline(
        config.data, tokenizer, labels, sources, batch_size=config.train.batch_size, seed=config.seed
    ).batch(0)["pairs"]
    lines, trains = describe({k: v[0] for k, v in rows.items()}, tokenizer, labels, None, False, False)
    assert trains and [line.split()[0] for line in lines] == ["image", "label"]
    config.data.parts.pairs.transforms = load_config("configs/clip.py").data.parts.pairs.transforms
    config.data.parts.pairs.path = "scenes/captions-80_8_32_16"
    with pytest.raises(ValueError, match=r"config\.text is None"):
        assemble.make_pipeline(
            config.data,
            tokenizer,
            labels,
            assemble.part_sources(config.data),
            batch_size=config.train.batch_size,
            seed=config.seed,
        ).batch(0)
