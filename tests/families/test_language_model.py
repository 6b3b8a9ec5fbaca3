"""Cached decoding of every language model: parameters that are laid out for it, and what a beam search never copies."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import FIXED, Vocabulary
from simvlm_jax.decode.beam import beam_search
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import decoding_params, generate
from simvlm_jax.models import coca
from simvlm_jax.models.coca import CoCa
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.sizes import Compute
from tests.conftest import random_rows

V = Vocabulary(size=50, length=12)
MODELS = {
    "encoder and decoder": (SimVLM, {}),
    "unrolled": (SimVLM, {"compute": Compute(scan=False)}),
    "one stack": (SimVLM, {"decoder_only": True}),
    "two halves": (CoCa, {}),
    "two halves, untied": (CoCa, {"size": "untied"}),
}


@pytest.fixture(params=MODELS, scope="module")
def made(request):
    """(model, params, rows with prompts of 0 to 2 pieces)."""
    kind, fields = MODELS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(coca.SIZES, "untied", dataclasses.replace(coca.SIZES["tiny"], tied=False))
        model, batch = kind(V, 32, **fields), random_rows(4)
        params = nn.unbox(jax.jit(model.init)(jax.random.key(0), {"pairs": batch})[0])
        params = jax.tree.map(lambda x: 1.5 * x, params)  # sharper logits, so that hypotheses differ
        rows = {"image": batch["image"], "text": batch["text"][:, :2]}
        yield model, params, {**rows, "text_mask": np.arange(2) < np.asarray([[0], [1], [2], [2]])}


def test_parameters_laid_out_for_decoding_change_nothing(made):
    model, params, rows = made
    able, how = model.capabilities(), Decoding(max_length=6, min_length=3)
    ready = jax.jit(functools.partial(decoding_params, able))(params, {})
    again = decoding_params(able, ready, {})
    assert all(a is b for a, b in zip(jax.tree.leaves(ready), jax.tree.leaves(again), strict=True))
    run = jax.jit(lambda p: generate(able, p, {}, rows, vocabulary=V, decoding=how))
    expected, got = run(params), run(ready)
    assert expected.tokens.tolist() == got.tokens.tolist()
    np.testing.assert_allclose(expected.score, got.score, rtol=1e-5)
    assert len(set(map(tuple, expected.tokens[:, 0].tolist()))) > 1


def test_matrices_of_decoding_layers_have_the_dtype_of_the_computation(made):
    model, params, _ = made
    model = dataclasses.replace(model, compute=Compute("bfloat16", scan=model.compute.scan))
    ready = jax.eval_shape(model.decoding_params, params, {})
    for name, depth in model.stacks.items():
        layer = ready[name][f"layer_{depth - 1}"]
        assert {layer["attention"]["query_transposed"].dtype, layer["mlp"]["up_transposed"].dtype} == {
            jnp.dtype("bfloat16")
        }
        assert layer["norm_mlp"]["scale"].dtype == jnp.float32
        assert layer.get("relative", {}).get("table", layer["norm_mlp"]["scale"]).dtype == jnp.float32


def test_beams_share_what_no_step_changes(made):
    """Beams of a row look at one copy of its image, and find what as many copies would."""
    model, params, rows = made
    able, how = model.capabilities(), Decoding(max_length=6, beams=3, n_best=3)

    def search(repeated):
        logits, cache = able["prefill"](params, {}, rows, how.max_length)
        if repeated:
            cache = {"rest": cache}

        def extend(cache, chosen):
            whole = cache["rest"] if repeated else cache
            held = {len(x) for x in jax.tree.leaves(whole[FIXED])}
            assert held <= {12 if repeated else 4} and len(whole["slots"]["filled"]) == 12
            logits, whole = able["extend"](params, {}, whole, chosen[:, None])
            return logits[:, 0], {"rest": whole} if repeated else whole

        return beam_search(extend, logits, cache, V, how)

    (tokens, scores), (expected, as_repeated) = jax.jit(lambda: (search(False), search(True)))()
    assert tokens.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, as_repeated, rtol=1e-5)


@pytest.mark.parametrize("made", ["one stack"], indirect=True)
def test_pieces_beyond_the_room_of_prefill_are_refused(made):
    model, params, rows = made
    able, one = model.capabilities(), jnp.full((4, 1), 5)
    extend = jax.jit(able["extend"])
    _, cache = jax.jit(able["prefill"], static_argnums=3)(params, {}, rows, 2)
    slots = cache["slots"]["segment"].shape[1]
    for _ in range(2):
        _, cache = extend(params, {}, cache, one)
    assert cache["slots"]["filled"].tolist() == [slots] * 4
    message = (
        f"1 more tokens do not fit a cache of {slots} slots, of which {slots} are taken.*max_length that is 1 larger"
    )
    with pytest.raises(ValueError, match=message):
        able["extend"](params, {}, cache, one)
    with pytest.raises(ValueError, match=f"{slots + 1} more tokens do not fit a cache of {slots} slots, of which some"):
        jax.eval_shape(able["extend"], params, {}, cache, jnp.full((4, slots + 1), 5))


def test_a_step_does_not_depend_on_how_many_pieces_are_fed(made):
    """One piece after another, or all at once; prompts of other lengths beside it."""
    model, params, rows = made
    able, pieces = model.capabilities(), jnp.asarray(np.random.default_rng(0).integers(4, 50, (4, 5)))

    def run():
        first, cache = able["prefill"](params, {}, rows, 6)
        whole, _ = able["extend"](params, {}, cache, pieces)
        single = []
        for t in range(pieces.shape[1]):
            logits, cache = able["extend"](params, {}, cache, pieces[:, t : t + 1])
            single.append(logits[:, 0])
        alone = {k: v[2:3] for k, v in rows.items()}
        return whole, jnp.stack(single, 1), first, able["prefill"](params, {}, alone, 6)[0]

    whole, single, first, alone = jax.jit(run)()
    np.testing.assert_allclose(whole, single, atol=2e-4)  # logits of size 10 in float32
    np.testing.assert_allclose(first[2:3], alone, atol=2e-4)
