"""Text from a model by `prefill` and `extend`: batched, cached, each row on its own.

A row's result depends on its own inputs, seed and id alone: not on its neighbours, their number, or padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Extra, Params, Rows, Vocabulary
from simvlm_jax.decode.beam import beam_search
from simvlm_jax.decode.constraints import apply_rules
from simvlm_jax.decode.decoding import Decoding


class Generated(NamedTuple):
    """The J best hypotheses of each row, the best first.

    tokens [B,J,U] int32 ended by EOS then pad, U = max_length; a forced prefix is part of them. score [B,J] fp32: the
    log-likelihood in nats, forced pieces left out, EOS included; divided by length^length_penalty in a beam search.
    """

    tokens: jax.Array
    score: jax.Array


def generate(
    capabilities: dict[str, Callable],
    params: Params,
    extra: Extra,
    batch: Rows,
    *,
    vocabulary: Vocabulary,
    decoding: Decoding,
    forced: tuple[int, ...] = (),
    seed: int | jax.Array = 0,
) -> Generated:
    """Continues each row's prompt by `decoding.max_length` pieces at most.

    forced: pieces every answer begins with. Rows draw from keys made of `seed` and their `id` (their number in the batch
    where there is none).
    """
    check_lengths(decoding, forced)
    params = decoding_params(capabilities, params, extra)
    logits, cache = capabilities["prefill"](params, extra, batch, decoding.max_length)
    return continue_prompts(
        capabilities,
        params,
        extra,
        logits,
        cache,
        batch.get("id", jnp.arange(logits.shape[0])),
        vocabulary=vocabulary,
        decoding=decoding,
        forced=forced,
        seed=seed,
    )


def check_lengths(decoding: Decoding, forced: tuple[int, ...]) -> None:
    """Refuse a decoding without a number of pieces, and a forced prefix that fills it."""
    if decoding.max_length < 1:
        raise ValueError(f"decoding.max_length {decoding.max_length}: name the number of pieces to generate")
    if len(forced) >= decoding.max_length:
        raise ValueError(f"a forced prefix of {len(forced)} pieces fills max_length {decoding.max_length}")


def continue_prompts(
    capabilities: dict[str, Callable],
    params: Params,
    extra: Extra,
    logits: jax.Array,
    cache: dict[str, Any],
    ids: jax.Array,
    *,
    vocabulary: Vocabulary,
    decoding: Decoding,
    forced: tuple[int, ...],
    seed: int | jax.Array,
) -> Generated:
    """Continues prompts that "prefill" has read into logits [B,V] and a cache, of rows with ids [B]; see `generate`."""

    def extend(cache, chosen):
        logits, cache = capabilities["extend"](params, extra, cache, chosen[:, None])
        return logits[:, 0], cache

    if decoding.beams > 1:
        return Generated(*beam_search(extend, logits, cache, vocabulary, decoding, forced))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids.astype(jnp.uint32))
    tokens, total = one_by_one(extend, logits, cache, keys, vocabulary, decoding, forced)
    return Generated(tokens[:, None], total[:, None])


def decoding_params(capabilities: dict[str, Callable], params: Params, extra: Extra) -> Params:
    """Lay parameters out as decoding reads them fastest, where the model knows how; worth it for many steps.

    A caller with many batches makes them once for all: parameters that are laid out already stay what they are.
    """
    lay_out = capabilities.get("decoding_params")
    return lay_out(params, extra) if lay_out else params


def one_by_one(
    extend: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    logits: jax.Array,
    cache: Any,
    keys: jax.Array,
    vocabulary: Vocabulary,
    decoding: Decoding,
    forced: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Generate greedily or by sampling: (tokens [B,U], log-likelihood [B] by the model itself, without any rule).

    extend: `(cache, tokens [B]) -> (logits [B,V], cache)`; logits [B,V] and cache are those after the prompt. keys [B]: typed.
    """
    B, U = logits.shape[0], decoding.max_length

    def choose(i, logits, tokens, total, done):
        logits = logits.astype(jnp.float32)
        allowed = apply_rules(logits, tokens, i, decoding, vocabulary, forced)
        chosen = decoding.sampler(allowed, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        likely = jnp.take_along_axis(logits, chosen[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.where(done, vocabulary.pad, chosen)
        total = total + jnp.where(done | (i < len(forced)), 0.0, likely)
        return tokens.at[:, i].set(chosen), total, done | (chosen == vocabulary.eos)

    def unfinished(carry):
        i, _, _, _, done = carry
        return (i < U) & ~done.all()

    def step(carry):
        i, cache, tokens, total, done = carry
        logits, cache = extend(cache, tokens[:, i - 1])
        return i + 1, cache, *choose(i, logits, tokens, total, done)

    empty = jnp.full((B, U), vocabulary.pad, jnp.int32)
    first = choose(jnp.zeros((), jnp.int32), logits, empty, jnp.zeros((B,)), jnp.zeros((B,), bool))
    _, _, tokens, total, _ = jax.lax.while_loop(unfinished, step, (jnp.ones((), jnp.int32), cache, *first))
    return tokens, total
