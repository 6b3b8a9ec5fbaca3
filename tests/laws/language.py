"""Checks of models that write, by their capabilities alone."""

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.types import Model, Rows
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.infer.computations import generation
from simvlm_jax.infer.engine import Engine
from simvlm_jax.parallel.mesh import make_mesh, placed, state_letters
from tests.laws.cases import V

SAMPLED, BEAMS = Decoding(max_length=6, sampler=Sampler(0.7, top_k=20)), Decoding(max_length=6, beams=3)
SIZES, NEW = np.asarray([0, 1, 3, 4]), 6
"""Pieces of the prompts of four rows, and pieces after them."""


def _looks(rows: Rows) -> Rows:
    return {k: rows[k] for k in ("image", "image_mask") if k in rows}


def cached_is_uncached(model: Model, params, extra, rows: Rows, tolerance: float):
    """What is predicted after a prompt and new pieces is what `score_text` gives of the whole text, piece by piece.

    The parameters of decoding are those that a model lays out for it. rows: four. Two pieces are fed at once, two more, then one.
    Each new piece's likelihood is compared; after all of them, that of every piece of the vocabulary.
    """
    able = model.capabilities()
    new = np.random.default_rng(0).integers(4, V.size, (4, NEW)).astype(np.int32)
    prompt = {**_looks(rows), "text": rows["text"][:, :4], "text_mask": np.arange(4) < SIZES[:, None]}

    @jax.jit
    def predict(params, prompt, new):
        logits, cache = able["prefill"](params, extra, prompt, 8)
        found, leaves = [logits[:, None]], jax.tree.leaves(cache)
        for start, end in ((0, 2), (2, 4), (4, 5)):
            logits, cache = able["extend"](params, extra, cache, new[:, start:end])
            found.append(logits)
        assert all(leaf.shape[0] == len(new) for leaf in leaves)
        return jax.nn.log_softmax(jnp.concatenate(found, axis=1))

    laid_out = able["decoding_params"](params, extra) if "decoding_params" in able else params
    cached = np.asarray(predict(laid_out, prompt, new))
    last = len(SIZES) - 1
    endings = [(r, new[r, :k]) for r in range(4) for k in range(1, NEW + 1)]
    endings += [(last, np.append(new[last, : NEW - 1], piece)) for piece in range(V.size)]
    texts, mask = np.zeros((len(endings), V.length), np.int32), np.zeros((len(endings), V.length), bool)
    of = np.asarray([r for r, _ in endings])
    for text, real, (r, pieces) in zip(texts, mask, endings, strict=True):
        n = SIZES[r]
        text[:n], text[n : n + len(pieces)], real[: n + len(pieces)] = rows["text"][r, :n], pieces, True
    looks = {k: x[of] for k, x in _looks(rows).items()}
    whole = {**looks, "text": texts, "text_mask": mask, "prefix_length": SIZES[of].astype(np.int32)}
    scores = np.asarray(jax.jit(able["score_text"])(params, extra, whole))
    of_each, of_all = scores[: 4 * NEW].reshape(4, NEW), scores[4 * NEW :]
    chosen = np.take_along_axis(cached, new[:, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(np.cumsum(chosen, axis=1), of_each, rtol=0, atol=tolerance)
    np.testing.assert_allclose(cached[last, -1], of_all - of_each[last, NEW - 2], rtol=0, atol=tolerance)


def decoding_on_a_mesh_is_that_of_one_device(model: Model, params, extra, rows: Rows):
    """The same pieces and scores of beams, whatever of rows, heads and parameters the devices share."""
    texts = {"text": rows["text"][:, :2], "text_mask": rows["text_mask"][:, :2], "id": np.arange(len(rows["text"]))}
    boxed, boxed_extra = jax.eval_shape(model.init, jax.random.key(0), {"pairs": rows})
    letters, found = state_letters(boxed, boxed_extra), []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(jax.devices()[: int(np.prod(sizes))], *sizes)
        weights, state = (
            jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), tree, placed(mesh, letters, tree))
            for tree in (params, extra)
        )
        asked = Engine(model, None, mesh, weights, state, batch_size=8)
        function = generation(model, V, BEAMS, ())
        found.append(
            asked.programs.over(
                mesh, function, asked.decoding_params, state, {**_looks(rows), **texts}, (np.uint32(0),), 8
            )
        )
    one, several = found
    np.testing.assert_array_equal(one.tokens, several.tokens)
    np.testing.assert_allclose(one.score, several.score, atol=1e-10)


def a_text_is_written_for_its_own_row(model: Model, params, extra, rows: Rows, how: Decoding, pieces: int):
    """A caption depends on its own image, prompt and id: not on other rows, nor on padding after a prompt of `pieces`."""
    params = jax.tree.map(lambda x: x * 1.5, params)  # sharper logits, so that texts differ

    @jax.jit
    def write(params, inputs):
        return generate(model.capabilities(), params, extra, inputs, vocabulary=V, decoding=how, seed=1)

    def written(chosen, width):
        prompt = {
            "text": rows["text"][chosen, :width],
            "text_mask": np.tile(np.arange(width) < pieces, (len(chosen), 1)),
        }
        looks = {k: x[chosen] for k, x in _looks(rows).items()}
        made = write(params, {**looks, **prompt, "id": np.asarray(chosen)})
        return np.asarray(made.tokens[:, 0]), np.asarray(made.score[:, 0])

    tokens, scores = written([0, 1, 2, 3, 4, 5], pieces)
    alone, score = written([3], pieces + 3)
    assert len(np.unique(scores.round(8))) == 6
    assert tokens[3].tolist() == alone[0].tolist()
    np.testing.assert_allclose(scores[3], score[0], atol=1e-10)
