"""Token-by-token generation over `prefill` and `extend`: batched, cached, each row on its own.

A row's result depends on its own inputs, seed and id alone: not on its neighbours, their number, or padding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Batch, Vocabulary
from simvlm_jax.decode.sampling import Sampler


def generate(
    capabilities: dict[str, Callable],
    params,
    extra,
    batch: Batch,
    *,
    vocabulary: Vocabulary,
    max_length: int,
    sampler: Sampler,
    seed: int = 0,
):
    """Continues each row's prompt: (tokens [B,max_length] int32 ended by EOS then pad, log-probability [B] fp32).

    The log-probability is the model's own, of all tokens chosen, EOS included. Rows draw from keys made of `seed` and
    their `id` (their number in the batch where there is none).
    """
    extend = capabilities["extend"]
    logits, cache = capabilities["prefill"](params, extra, batch, max_length)
    B = logits.shape[0]
    ids = batch.get("id", jnp.arange(B))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids.astype(jnp.uint32))
    tokens = jnp.full((B, max_length), vocabulary.pad, jnp.int32)
    start = (jnp.zeros((), jnp.int32), logits, cache, tokens, jnp.zeros((B,)), jnp.zeros((B,), bool))

    def unfinished(carry):
        i, _, _, _, _, done = carry
        return (i < max_length) & ~done.all()

    def step(carry):
        i, logits, cache, tokens, total, done = carry
        chosen = sampler(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        likely = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), chosen[:, None], 1)[:, 0]
        chosen = jnp.where(done, vocabulary.pad, chosen)
        total = total + jnp.where(done, 0.0, likely)
        logits, cache = extend(params, extra, cache, chosen[:, None])
        done = done | (chosen == vocabulary.eos)
        return i + 1, logits[:, 0], cache, tokens.at[:, i].set(chosen), total, done

    _, _, _, tokens, total, _ = jax.lax.while_loop(unfinished, step, start)
    return tokens, total
