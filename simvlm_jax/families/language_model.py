"""Language models: cached generation, likelihoods of texts and attention maps, written once for all of them.

A model of this family states how it reads an image and a prompt (`read`), predicts a whole text (`teacher_forced`) and shows
where it looks (`attention`); its network, how it feeds new pieces (`step`) and what its logits are products of. The rest is here.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.parts import check_one_text
from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.types import FIXED, Extra, Params, Rows, Vocabulary
from simvlm_jax.families.network import NetworkModel
from simvlm_jax.nn.cache import write
from simvlm_jax.nn.linear import add, multiply_transposed
from simvlm_jax.nn.sizes import Compute, statistics_dtype
from simvlm_jax.nn.stack import decoding_layers
from simvlm_jax.objectives.cross_entropy import token_log_likelihood, vocabulary_logits

OUTPUT = "output_transposed"
"""The softmax's weights [V,D] in the dtype of the computation, among parameters that are laid out for decoding."""


class Reading(NamedTuple):
    """An image and a prompt, read.

    tokens, fed [B,T]: pieces that the decoder is fed next, of which those count that are `fed` (in each row the first ones).
    slots: see nn.cache. layers: of each stack, the KeyValue of each layer. fixed: what no step changes, such as the keys and
    values of a cross-attention and who is seen there.
    """

    tokens: jax.Array
    fed: jax.Array
    slots: dict[str, Any]
    layers: dict[str, Any]
    fixed: dict[str, Any]


class Teacher(NamedTuple):
    """What a decoder says of a whole text.

    states [B,T,D] after the last norm and table [V,D], whose product the logits are; targets [B,T]; whether each is predicted
    [B,T].
    """

    states: jax.Array
    table: jax.Array
    targets: jax.Array
    predicted: jax.Array


class DecoderNetwork(nn.Module):
    """The network of a language model: `step(tokens, written, layers, fixed)` -> (states [B,T,D], layers), see nn.cache.Written;
    `last_norm(states)` -> [B,T,D]; `output_table()`, the softmax's weights [V,D]; and `output_bias()`, [V] or None.
    """

    def output_bias(self) -> jax.Array | None:
        return None

    def logits(self, states: jax.Array) -> jax.Array:
        """States [B,T,D] to logits [B,T,V] in fp32 (or wider)."""
        x, bias = self.last_norm(states), self.output_bias()
        if self.has_variable("params", OUTPUT):
            table, precise = self.get_variable("params", OUTPUT), statistics_dtype(x.dtype)
            logits = constrain(multiply_transposed(x, table, preferred_element_type=precise), "BTV")
        else:
            logits = vocabulary_logits(x, self.output_table())
        return logits if bias is None else add(logits, in_use(bias, "V"))

    def head(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What logits are products of: states after the last norm [B,T,D], and the table [V,D].

        A bias is one more column of the table, beside a state that is 1 everywhere; of a narrower dtype there is a second column
        of what its rounding leaves.
        """
        x, table, bias = self.last_norm(states), self.output_table(), self.output_bias()
        if bias is None:
            return x, table
        bias = in_use(bias, "V")
        columns = [bias.astype(table.dtype)]
        if table.dtype != bias.dtype:
            columns.append((bias - columns[0].astype(bias.dtype)).astype(table.dtype))
        ones = jnp.ones((*x.shape[:-1], len(columns)), x.dtype)
        return jnp.concatenate([x, ones], axis=-1), jnp.concatenate([table, jnp.stack(columns, axis=-1)], axis=-1)


class LanguageModel(NetworkModel):
    """A model that predicts pieces.

    `stacks` names the network's stacks that decode, with their depths; `output_name` the parameter that is its `output_table`.
    """

    vocabulary: Vocabulary
    compute: Compute

    @property
    def stacks(self) -> dict[str, int]:
        raise NotImplementedError

    @property
    def output_name(self) -> str:
        return "embedding"

    def read(self, params: Params, batch: Rows, max_length: int) -> Reading:
        """Reads an image and a prompt, with room for `max_length` more pieces."""
        raise NotImplementedError

    def teacher_forced(self, params: Params, batch: Rows) -> Teacher:
        """Predicts every piece of a text from those before it."""
        raise NotImplementedError

    def language_capabilities(self) -> dict[str, Any]:
        """What every model of the family can do."""
        return {
            "prefill": self.prefill,
            "extend": self.extend,
            "decoding_params": self.decoding_params,
            "attention": self.attention,
        }

    def prefill(self, params: Params, extra: Extra, batch: Rows, max_length: int) -> tuple[jax.Array, dict[str, Any]]:
        """Reads image and prompt (`text` where `text_mask`, without EOS), ready to predict up to `max_length` pieces.

        Returns (logits [B,V] fp32 of the first new piece, cache). Positions run to `vocabulary.length`: a prompt of width T
        leaves room for `length - T` pieces.
        """
        check_one_text(batch, "prefill")
        T = batch["text"].shape[1]
        room = self.vocabulary.length - T
        if max_length > room:
            raise ValueError(
                f"a prompt of {T} pieces leaves room for {room} of {self.vocabulary.length}, not {max_length}"
            )
        reading = self.read(params, batch, max_length)
        cache = {"slots": reading.slots, "layers": reading.layers, FIXED: reading.fixed}
        states, cache = self._feed(params, cache, reading.tokens, reading.fed)
        last = jnp.maximum(reading.fed.sum(1) - 1, 0)
        states = jnp.take_along_axis(states, last[:, None, None], axis=1)
        return self.apply(params, "logits", states)[:, 0], cache

    def extend(
        self, params: Params, extra: Extra, cache: dict[str, Any], tokens: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Feeds tokens [B,T] and returns (logits [B,T,V] fp32 of what follows each, cache).

        params: the model's, or what `decoding_params` made of them, as for `prefill`. The rows may be several continuations of
        each row that was prefilled, side by side: what is fixed in the cache then has fewer rows.

        Raises:
          ValueError: there are more pieces than `prefill` made room for, as far as that is known (see nn.cache.write).
        """
        states, cache = self._feed(params, cache, tokens, jnp.ones(tokens.shape, bool))
        return self.apply(params, "logits", states), cache

    def decoding_params(self, params: Params, extra: Extra) -> Params:
        """Parameters as many calls of `prefill` and `extend` read them, to be made once; what is such already stays as it is.

        The parameters of each decoder layer are apart; matrices have the dtype of the computation, and those that every step
        multiplies with are transposed (nn.linear.multiply_transposed).
        """
        if OUTPUT in params:
            return params
        dtype, out = self.compute.activation_dtype, dict(params)
        out[OUTPUT] = params[self.output_name].astype(dtype)
        for name, depth in self.stacks.items():
            out[name] = decoding_layers(params[name], depth, dtype)
        return out

    def _feed(
        self, params: Params, cache: dict[str, Any], tokens: jax.Array, fed: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        new = write(cache["slots"], fed)
        states, layers = self.apply(params, "step", tokens, new, cache["layers"], cache[FIXED])
        return states, {**cache, "slots": new.state, "layers": layers}

    def score_text(self, params: Params, extra: Extra, batch: Rows) -> jax.Array:
        """Log-likelihood [B] fp32 (nats) of each row's text after its prefix, EOS included, given image and prefix."""
        check_one_text(batch, "score_text")
        states, table, targets, predicted = self.teacher_forced(params, batch)
        chosen = token_log_likelihood(states, table, targets)
        wanted = predicted & (jnp.arange(targets.shape[1]) >= batch["prefix_length"][:, None])
        return jnp.where(wanted, chosen, 0).sum(1)

    def attention(self, params: Params, extra: Extra, batch: Rows) -> jax.Array:
        """Where each predicted piece looks: [B,T,P] over image tokens. Row t belongs to piece t of `text`."""
        raise NotImplementedError

    def last_weights(self, layers: dict[str, Any], attention: str) -> jax.Array:
        """Mean over heads [B,T,S] of the weights that the last layer of a stack sowed, from its "intermediates"."""
        block = layers["layers"] if self.compute.scan else layers[f"layer_{len(layers) - 1}"]
        weights = block[attention]["weights"][0]
        return (weights[-1] if self.compute.scan else weights).mean(1)
