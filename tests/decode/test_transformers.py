"""Greedy, beam search and sampling against transformers, on a small random encoder-decoder whose weights both sides share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler

torch = pytest.importorskip("torch", reason="parity with transformers needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="parity with transformers needs the [parity] extra")

PIECES = Vocabulary(40, 32)
HEADS, LENGTH, ROWS = 4, 12, 6


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=PIECES.size,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=48,
        init_std=0.35,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        dropout=0.0,
        attn_implementation="eager",
    )
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def ours(theirs):
    """The same network in JAX behind `prefill` and `extend`; nothing is cached but the pieces."""
    w = {k: jnp.asarray(v.numpy()) for k, v in theirs.state_dict().items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x, y, mask, name):
        q, k, v = (linear(a, f"{name}.{p}_proj") for a, p in ((x, "q"), (y, "k"), (y, "v")))
        q, k, v = (a.reshape(*a.shape[:2], HEADS, -1) for a in (q, k, v))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
        p = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        return linear(jnp.einsum("bhts,bshk->bthk", p, v).reshape(x.shape), f"{name}.out_proj")

    def embed(ids, side):
        positions = w[f"model.{side}.embed_positions.weight"][2 : 2 + ids.shape[1]]
        return norm(w["model.shared.weight"][ids] + positions, f"model.{side}.layernorm_embedding")

    def mlp(x, name):
        return linear(jax.nn.gelu(linear(x, f"{name}.fc1"), approximate=False), f"{name}.fc2")

    def encode(ids, valid):
        x = embed(ids, "encoder")
        for i in range(2):
            name = f"model.encoder.layers.{i}"
            x = norm(x + attend(x, x, valid[:, None, None], f"{name}.self_attn"), f"{name}.self_attn_layer_norm")
            x = norm(x + mlp(x, name), f"{name}.final_layer_norm")
        return x

    def decode(ids, context, valid):
        x, causal = embed(ids, "decoder"), jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))[None, None]
        for i in range(2):
            name = f"model.decoder.layers.{i}"
            x = norm(x + attend(x, x, causal, f"{name}.self_attn"), f"{name}.self_attn_layer_norm")
            seen = attend(x, context, valid[:, None, None], f"{name}.encoder_attn")
            x = norm(x + seen, f"{name}.encoder_attn_layer_norm")
            x = norm(x + mlp(x, name), f"{name}.final_layer_norm")
        return x @ w["model.shared.weight"].T + w["final_logits_bias"]

    def prefill(params, extra, batch, length):
        said = jnp.full((batch["text"].shape[0], length + 1), 0).at[:, 0].set(PIECES.bos)
        n = jnp.ones(len(said), jnp.int32)
        context = encode(batch["text"], batch["text_mask"])
        logits = decode(said, context, batch["text_mask"])[:, 0]
        return logits, {"said": said, "n": n, "context": context, "valid": batch["text_mask"]}

    def extend(params, extra, cache, tokens):
        rows = jnp.arange(len(tokens))
        said = cache["said"].at[rows, cache["n"]].set(tokens[:, 0], mode="drop")
        logits = decode(said, cache["context"], cache["valid"])[rows, jnp.minimum(cache["n"], said.shape[1] - 1)]
        return logits[:, None], {**cache, "said": said, "n": cache["n"] + 1}

    return {"prefill": prefill, "extend": extend}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    valid = np.arange(9) < rng.integers(4, 10, ROWS)[:, None]
    return {"text": np.where(valid, rng.integers(3, PIECES.size, (ROWS, 9)), 0), "text_mask": valid}


def test_the_networks_agree(theirs, ours, batch):
    logits, _ = ours["prefill"](None, None, {k: jnp.asarray(v) for k, v in batch.items()}, LENGTH)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(batch["text"]),
            attention_mask=torch.tensor(batch["text_mask"]).long(),
            decoder_input_ids=torch.ones((ROWS, 1), dtype=torch.long),
        ).logits[:, 0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


CASES = {
    "greedy": dict(),
    "greedy, rules": dict(min_length=5, repetition_penalty=1.3, no_repeat_ngram=2),
    "greedy, forced": dict(forced=(7, 9)),
    "beam": dict(beams=4, n_best=4),
    "beam, longer": dict(beams=4, n_best=2, length_penalty=2.0),
    "beam, shorter": dict(beams=3, n_best=3, length_penalty=-1.0),
    "beam, no penalty": dict(beams=5, n_best=5, length_penalty=0.0),
    "beam, rules": dict(beams=4, n_best=3, min_length=4, repetition_penalty=1.2, no_repeat_ngram=3),
    "beam, forced": dict(beams=3, n_best=3, forced=(7, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_generation(theirs, ours, batch, case):
    how = dict(CASES[case])
    forced = how.pop("forced", ())
    decoding = Decoding(max_length=LENGTH, **how)
    made = generate(
        ours,
        None,
        None,
        {k: jnp.asarray(v) for k, v in batch.items()},
        vocabulary=PIECES,
        decoding=decoding,
        forced=forced,
    )
    kwargs = dict(num_beams=decoding.beams, num_return_sequences=decoding.n_best)
    if decoding.beams > 1:
        kwargs |= dict(length_penalty=decoding.length_penalty, early_stopping="never")
    with torch.no_grad():
        expected = theirs.generate(
            input_ids=torch.tensor(batch["text"]),
            attention_mask=torch.tensor(batch["text_mask"]).long(),
            decoder_input_ids=torch.tensor([[PIECES.bos, *forced]] * ROWS),
            max_new_tokens=LENGTH - len(forced),
            min_new_tokens=decoding.min_length,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            suppress_tokens=[PIECES.pad, PIECES.bos],
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **kwargs,
        )
    texts = np.zeros((ROWS * decoding.n_best, LENGTH), int)
    found = expected.sequences[:, 1:].numpy()
    texts[:, : found.shape[1]] = found
    assert np.asarray(made.tokens).reshape(-1, LENGTH).tolist() == texts.tolist()
    if decoding.beams > 1:
        # relative, for a negative length penalty multiplies scores by the length: they are in the hundreds
        np.testing.assert_allclose(made.score.reshape(-1), expected.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "how", [dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(temperature=1.4, top_k=12, top_p=0.6)]
)
def test_sampling_from_fixed_logits(how):
    logits = np.random.default_rng(2).normal(size=(8, 40)).astype(np.float32) * 2
    sampler = Sampler(**{"temperature": 1.0, **how})
    chain = [transformers.TemperatureLogitsWarper(sampler.temperature)] if sampler.temperature != 1 else []
    chain += [transformers.TopKLogitsWarper(sampler.top_k)] if sampler.top_k else []
    chain += [transformers.TopPLogitsWarper(sampler.top_p)] if sampler.top_p < 1 else []
    expected = torch.tensor(logits)
    for warp in chain:
        expected = warp(None, expected)
    ours = jax.nn.softmax(sampler.filter(jnp.asarray(logits)), -1)
    np.testing.assert_allclose(ours, torch.softmax(expected, -1).numpy(), atol=1e-6)
