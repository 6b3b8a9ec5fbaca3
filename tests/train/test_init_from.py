"""Whose pieces and whose answers: parameters whose letters are V and A are taken from runs of the same tokenizer and answers."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import BaseModel, Term
from simvlm_jax.parallel.mesh import make_mesh
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.text.tokenizer import Tokenizer
from simvlm_jax.train.init_from import initialiser, tokenizer_of
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.state import prepare


@dataclasses.dataclass(frozen=True)
class Reader(BaseModel):
    """A model of an embedding, an untied table that predicts pieces, and a head: {name: letters}."""

    letters: tuple[tuple[str, tuple[str | None, ...]], ...] = (
        ("body", ("D", "F")),
        ("embedding", ("V", "D")),
        ("head_kernel", ("D", "A")),
        ("softmax", ("V", "D")),
    )
    remembers: bool = False

    def init(self, rng, batch):
        keys = jax.random.split(rng, len(self.letters))
        params = {
            name: nn.with_logical_partitioning(nn.initializers.normal(), letters)(key, (4,) * len(letters))
            for key, (name, letters) in zip(keys, self.letters, strict=True)
        }
        return params, {"copy": jax.tree.map(jnp.copy, nn.unbox(params))} if self.remembers else {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        return {}, {"sum": Term(jnp.square(params["body"]).sum(), jnp.ones(()))}, {}


MESH = make_mesh(jax.devices()[:1])


def prepared(model):
    return prepare(model, Optimizer(decay=()), {"pairs": {"x": np.zeros((1, 1))}}, MESH, seed=1, steps=1)


@pytest.fixture(scope="module")
def tokenizers():
    return [Tokenizer.train([words] * 9, 20, 8) for words in ("some words", "other pieces")]


@pytest.fixture
def saved(tmp_path, tokenizers):
    """`saved(model)`: a run directory of one checkpoint, with the first tokenizer and the answers yes and no."""

    def make(model=None):
        run = RunDir(tmp_path / "run")
        run.path.mkdir()
        (run.path / "config.json").write_text("{}")
        tokenizers[0].save(run.tokenizer)
        run.write_labels(("yes", "no"))
        ready = prepared(model or Reader())
        run.write_letters(ready.letters)
        state, checkpoints = ready.start(), Checkpoints(run.checkpoints)
        checkpoints.save(1, state, (state.params, state.extra))
        checkpoints.wait()
        checkpoints.close()
        return run

    return make


def start(run, tokenizer, labels=("yes", "no"), rules=(), model=None):
    model = model or Reader()
    sources = ({"run": str(run.path), "map": rules},)
    return prepared(model).start(initialiser(model, tokenizer.sha256, labels, sources, MESH))


def test_everything_is_taken_from_a_run_alike(saved, tokenizers):
    run = saved()
    state = start(run, tokenizers[0])
    reader = Checkpoints(run.checkpoints, read_only=True)
    params, _ = reader.restore_weights(1, lambda name, shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert tokenizer_of((str(run.path),)) == run.tokenizer


def test_a_table_of_pieces_is_known_by_its_letter_not_its_name(saved, tokenizers):
    """An untied softmax means pieces as the embedding does."""
    run, without = saved(), [("^embedding$", None)]
    with pytest.raises(ValueError, match=r"another tokenizer .*set config\.text\.model="):
        start(run, tokenizers[1], rules=without)
    assert tokenizer_of(({"run": str(run.path), "map": without},)) == run.tokenizer
    neither = [("^(embedding|softmax)$", None)]
    start(run, tokenizers[1], rules=neither)
    assert tokenizer_of(({"run": str(run.path), "map": neither},)) is None


def test_a_momentum_copy_of_the_pieces_comes_from_the_same_tokenizer(saved, tokenizers):
    model = Reader(remembers=True)
    run, rules = saved(model), [("^(embedding|softmax)$", None)]
    with pytest.raises(ValueError, match="another tokenizer"):
        start(run, tokenizers[1], rules=rules, model=model)
    start(run, tokenizers[1], rules=[*rules, ("^extra/copy/(embedding|softmax)", None)], model=model)
    start(run, tokenizers[1], rules=rules)  # a model without copies takes none


def test_a_head_is_taken_for_the_same_answers_alone(saved, tokenizers):
    run = saved()
    with pytest.raises(ValueError, match=r"other answers \(2: yes, no .*\(\('\^\(head_kernel\)\$', None\),\)"):
        start(run, tokenizers[0], ("no", "yes"))
    start(run, tokenizers[0], ("no", "yes"), rules=[("^(head_kernel)$", None)])


def test_a_head_of_a_run_older_than_its_letter_is_known_by_the_model_that_takes_it(saved, tokenizers):
    run = saved()
    book = json.loads((run.path / "letters.json").read_text())
    book["head_kernel"] = ["D", None]  # as runs had it before there was a letter for answers
    (run.path / "letters.json").write_text(json.dumps(book))
    with pytest.raises(ValueError, match="other answers"):
        start(run, tokenizers[0], ("no", "yes"))
    start(run, tokenizers[0])


def test_a_run_older_than_the_record_of_letters_has_an_embedding(saved, tokenizers):
    run = saved()
    (run.path / "letters.json").unlink()
    assert tokenizer_of((str(run.path),)) == run.tokenizer
    with pytest.raises(ValueError, match="another tokenizer"):
        start(run, tokenizers[1])
    with pytest.raises(ValueError, match="other answers"):
        start(run, tokenizers[0], ("no", "yes"))
