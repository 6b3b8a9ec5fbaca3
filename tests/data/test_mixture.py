"""Laws of mixtures: shares exact in every batch and within a row of any prefix, each source whole in each of its epochs."""

import numpy as np
import pytest

from simvlm_jax.data.mixture import Mixture, interleave
from simvlm_jax.data.pipeline import Part, Pipeline, Quarantine
from simvlm_jax.data.source import Cached
from simvlm_jax.data.transforms import Keep


class Numbers:
    def __init__(self, name, count, bad=()):
        self.name, self.count, self.bad = name, count, bad

    def __len__(self):
        return self.count

    def key(self, index):
        return f"{self.name}{index}"

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError("truncated")
        return {"key": self.key(index), "x": np.float32(index)}


def mixed(seed=0, rows=10, mine=range, bad=(), **weights):
    sizes = {"a": 7, "b": 11, "c": 30}
    sources = {k: (Numbers(k, sizes[k], bad if k == "a" else ()), w) for k, w in weights.items()}
    return Pipeline([Part("pairs", Mixture(sources), [Keep(("x",))], rows)], seed, Quarantine(1.0), mine)


@pytest.mark.parametrize(
    "weights", [(0.7, 0.3), (1, 1, 1), (5, 3, 2), (90, 1, 1, 1, 1, 1, 5), (0.5, 0.25, 0.125, 0.125), (3,), (997, 2, 1)]
)
def test_every_prefix_has_each_share_to_less_than_a_row(weights):
    order = interleave(weights)
    shares = np.asarray(weights) / sum(weights)
    given = (order[:, None] == np.arange(len(weights))).cumsum(0)
    owed = np.arange(1, len(order) + 1)[:, None] * shares
    assert np.abs(given - owed).max() < 1 and (given[-1] == np.round(owed[-1])).all()


def test_every_batch_has_whole_shares_exactly():
    pipeline = mixed(a=5, b=3, c=2)
    for step in range(20):
        sources = [key[0] for key in pipeline.keys(step)["pairs"]]
        assert [sources.count(name) for name in "abc"] == [5, 3, 2]


def test_each_source_is_drawn_whole_before_any_of_it_again_in_another_order():
    pipeline = mixed(a=5, b=3, c=2)
    keys = [k for step in range(30) for k in pipeline.keys(step)["pairs"]]
    for name, count in (("a", 7), ("b", 11), ("c", 30)):
        mine = [k for k in keys if k.startswith(name)]
        epochs = [mine[i : i + count] for i in range(0, len(mine) - count + 1, count)]
        assert all(len(set(epoch)) == count for epoch in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]
    batch = pipeline.batch(3)["pairs"]
    starts = {"a": 0, "b": 7, "c": 18}
    assert batch["id"].tolist() == [starts[k[0]] + int(k[3:]) for k in pipeline.keys(3)["pairs"]]
    assert (batch["x"] == [int(k[3:]) for k in pipeline.keys(3)["pairs"]]).all()


def test_a_source_keeps_its_order_whatever_it_is_mixed_with():
    def drawn(**weights):
        pipeline = mixed(**weights)
        return [k for step in range(40) for k in pipeline.keys(step)["pairs"] if k.startswith("b")][:20]

    assert drawn(a=1, b=1) == drawn(b=3, c=1) != drawn(seed=1, a=1, b=1)


def test_resuming_hosts_and_threads_change_nothing():
    straight = list(mixed(a=2, b=1).iterate(0, 9, threads=1))
    for a, b in zip(straight[5:], mixed(a=2, b=1).iterate(5, 9, threads=4), strict=True):
        np.testing.assert_array_equal(a["pairs"]["id"], b["pairs"]["id"])
    halves = [mixed(a=2, b=1, mine=lambda n, i=i: range(i * n // 2, (i + 1) * n // 2)).batch(4) for i in (0, 1)]
    np.testing.assert_array_equal(straight[4]["pairs"]["id"], np.concatenate([h["pairs"]["id"] for h in halves]))


def test_a_bad_example_is_replaced_by_one_of_its_own_source():
    pipeline = mixed(a=1, b=1, bad=(0, 1, 2))
    for step in range(10):
        assert (pipeline.batch(step)["pairs"]["id"] < 7).sum() == 5 and pipeline.quarantine.drawn
    assert pipeline.quarantine.bad


def test_examples_of_a_mixture_stay_in_memory_source_by_source():
    plain = Mixture({"a": (Numbers("a", 4), 1.0), "b": (Numbers("b", 4), 3.0)})
    kept = plain.with_each(lambda source: Cached(source))
    assert kept[5] is kept[5] and kept.weights == plain.weights and kept.key(5) == "b/b1" == plain.key(5)
    assert repr(plain) != repr(Mixture({"a": (Numbers("a", 4), 1.0), "b": (Numbers("b", 4), 2.0)}))


def test_bad_weights_are_named():
    for weights in ((1, 0), (1, -1), (1, float("nan")), ()):
        with pytest.raises(ValueError, match="each must be a positive number"):
            interleave(weights)
    with pytest.raises(ValueError, match=r"repeat after .* write them with fewer digits"):
        interleave((0.3333333, 0.6666661))
    with pytest.raises(ValueError, match="source 'a' of a mixture is empty"):
        Mixture({"a": (Numbers("a", 0), 1.0)})


def test_a_config_mixes_its_sources_and_holds_some_of_each_out(tmp_path):
    from configs import parts
    from simvlm_jax.data import assemble

    for name in ("mine", "more"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} number {i}"}}\n' for i in range(200)))
    config = parts.base()
    config.text.length = 32
    config.train.batch_size = 4
    sources = {n: dict(path=str(tmp_path / f"{n}.jsonl"), weight=w) for n, w in (("mine", 3), ("more", 1))}
    config.data.parts.pairs = parts.part(sources=sources, images=False, transforms=parts.text_transforms())
    made = assemble.part_sources(config.data)
    tokenizer = assemble.make_tokenizer(config.text, config.data.parts, made)
    pipeline = assemble.make_pipeline(
        config.data, tokenizer, (), made, batch_size=config.train.batch_size, seed=config.seed
    )
    assert list(made) == ["pairs"] and len(pipeline.batch(0)["pairs"]["id"]) == 4
    assert all(160 < n < 200 for n in map(len, made["pairs"]._sources))
    for step in range(5):
        assert sum(key.startswith("mine/") for key in pipeline.keys(step)["pairs"]) == 3
    config.data.parts.pairs.path = "scenes/text"
    with pytest.raises(ValueError, match=r"config\.data\.parts\.pairs names both path and sources"):
        assemble.part_sources(config.data)
    config.data.parts.pairs.path, config.data.parts.pairs.sources = None, {}
    with pytest.raises(ValueError, match="names neither path nor sources"):
        assemble.part_sources(config.data)
    config.data.parts.pairs.rows = 0
    with pytest.raises(ValueError, match=r"no part has rows.*set config\.data\.parts\.pairs\.rows"):
        assemble.part_sources(config.data)
