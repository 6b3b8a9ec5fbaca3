"""The two ends of a language model: the embedding of tokens, and the head that predicts them, tied to it or not; and the inputs of
BERT's kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import LearnedPositions
from simvlm_jax.nn.sizes import Style, statistics_dtype


class TokenEmbedding(nn.Module):
    """Token embedding [V,D] and output head.

    Parameters: "embedding" [V,D]; "softmax" [V,D], the head's, unless tied (Press & Wolf, arXiv 1608.05859); "softmax_bias" [V].
    A network that has them at its own top level keeps them there with `nn.share_scope(network, token_embedding)`.

    Args:
      vocabulary: V, rows of the tables. width: D. dtype: of the activations.
      tied: whether the head is the transposed embedding. bias: of the head (GPT-J, Phi).
      deviation: of the initial values; 0: D^-0.5.
    """

    vocabulary: int
    width: int
    dtype: jnp.dtype
    tied: bool = True
    bias: bool = False
    deviation: float = 0.0

    def setup(self):
        normal = nn.initializers.normal(self.deviation or self.width**-0.5)
        table = nn.with_logical_partitioning(normal, ("V", "D"))
        self.embedding = self.param("embedding", table, (self.vocabulary, self.width))
        self.softmax = self.embedding if self.tied else self.param("softmax", table, (self.vocabulary, self.width))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("V",))
        self.offset = self.param("softmax_bias", zeros, (self.vocabulary,)) if self.bias else None

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """The vectors [B,T,D] of tokens [B,T] int32."""
        # looked up before the cast, so that the gradient of a row is summed in float32
        return constrain(in_use(self.embedding, "VD")[tokens_BT].astype(self.dtype), "BTD")

    def table(self) -> jax.Array:
        """The head's weights [V,D] in the dtype of the activations."""
        return in_use(self.softmax, "VD", self.dtype)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [B,T,V] in fp32 (or wider) of what follows each state [B,T,D]."""
        table, precise = in_use(self.softmax, "VD", x_BTD.dtype), statistics_dtype(x_BTD.dtype)
        logits = jnp.einsum("BTD,VD->BTV", x_BTD, table, preferred_element_type=precise)
        logits = logits if self.offset is None else add(logits, in_use(self.offset, "V"))
        return constrain(logits, "BTV")


class TextInputs(nn.Module):
    """Tokens [B,T] at positions [B,T], int32 both, to [B,T,D]: pieces and positions, added and normalised (BERT, arXiv 1810.04805).

    Args:
      vocabulary: V, rows of the embedding. positions: rows of the table of positions. width: D. style: of the norm.
    """

    vocabulary: int
    positions: int
    width: int
    dtype: jnp.dtype
    style: Style

    def setup(self):
        self.pieces = TokenEmbedding(self.vocabulary, self.width, self.dtype, deviation=0.02)
        nn.share_scope(self, self.pieces)
        self.position = LearnedPositions(self.positions, self.width, self.dtype)
        self.norm = norm_of(self.style, self.dtype)()

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return self.norm(self.pieces(tokens_BT) + self.position(positions_BT))

    def table(self) -> jax.Array:
        """The embedding [V,D] in the dtype of the activations, as the weights of a head that is tied to it."""
        return self.pieces.table()
