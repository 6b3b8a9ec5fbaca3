"""Small models behind `prefill` and `extend`, to search in."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np


def walker(pieces: int, states: int = 97, seed: int = 0, sharp: float = 2.0):
    """A model whose next logits depend on all pieces so far, through a state; `start` [B] is where a row begins."""
    table = jnp.asarray(np.random.default_rng(seed).normal(size=(states, pieces)) * sharp, jnp.float32)

    def prefill(params, extra, batch, length):
        state = jnp.asarray(batch["start"])
        return table[state], {"state": state}

    def extend(params, extra, cache, tokens):
        state, out = cache["state"], []
        for t in range(tokens.shape[1]):
            state = (state * 31 + tokens[:, t] + 7) % states
            out.append(table[state])
        return jnp.stack(out, 1), {"state": state}

    return {"prefill": prefill, "extend": extend}, np.asarray(jax.nn.log_softmax(table), np.float64)


def likelihood(table, start: int, tokens) -> float:
    """Log-likelihood of a sequence, step by step."""
    state, total = start, 0.0
    for token in tokens:
        total += table[state][token]
        state = (state * 31 + token + 7) % len(table)
    return total


def every_sequence(pieces: int, length: int, eos: int, never=()):
    """All sequences that end in EOS within `length`, or reach it without."""
    others = [v for v in range(pieces) if v != eos and v not in never]
    for n in range(length):
        for body in itertools.product(others, repeat=n):
            yield [*body, eos]
    yield from map(list, itertools.product(others, repeat=length))


def slow_beam(table, start, width, length, eos, never, power, allowed=lambda tokens, scores: scores):
    """Beam search by the book, one row, without ever stopping early: [(score, tokens)], the best first."""
    running, finished = [(0.0, [])], []
    for i in range(length):
        grown = []
        for total, tokens in running:
            state = start
            for t in tokens:
                state = (state * 31 + t + 7) % len(table)
            scores = allowed(tokens, table[state].copy())
            grown += [(total + scores[v], [*tokens, v]) for v in range(table.shape[1]) if v not in never]
        grown = sorted((g for g in grown if math.isfinite(g[0])), key=lambda g: -g[0])[: 2 * width]
        for rank, (total, tokens) in enumerate(grown):
            if (tokens[-1] == eos or i == length - 1) and rank < width:
                finished.append((total / (i + 1) ** power, tokens))
        running = [g for g in grown if g[1][-1] != eos][:width]
    return sorted(finished, key=lambda f: -f[0])[:width]
