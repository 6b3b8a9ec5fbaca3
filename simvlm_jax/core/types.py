"""The words everybody shares: letters, Batch, Term, Vocabulary, TrainState and the Model protocol.

Letters (one letter, one meaning):
`B` batch, `M` images per example, `Y X` rows and columns of pixels and of convolution kernels, `C` channels, `I` input
channels of a convolution, `P` image tokens, `T` text or query length, `S` source or key length, `Q` learned queries, `D`
model width, `F` mlp width, `H` heads, `G` heads of keys and values where they are fewer, `K` head width, `V` vocabulary, `A`
answers of a class head, `E` a space that towers share, `W` another tower's width, `L` layers (the scan axis), `N` slots of a
queue, `J` hypotheses of a row (beams, n-best texts, candidates), `U` slots of generated pieces; `r` and `c` are rows and columns
of pairs, images and texts as a rule. What they say of a parameter is in core/letters.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

Array = Any
"""jax.Array, np.ndarray or jax.ShapeDtypeStruct."""
Params = Any
Extra = Any
Features = Any
Rngs = Any

Rows = dict[str, Any]
"""One part of a batch, rows first. A missing key means absent; which keys there are, the transforms say that the config names.

`image` [B,M,Y,X,C] uint8 · `image_mask` [B,M] bool · `text` [B,T] int32 (pieces, then one EOS, then padding) ·
`text_mask` [B,T] bool (pieces and EOS) · `prefix_length` [B] int32 (leading pieces that are given; of packed rows [B,T], that of
each slot's text) · `seed` [B] uint32 (for draws that a model lays out itself) · `label` [B] int32 (-1: none of the list) ·
`scores` [B,A] float32 (of each answer, where several people answered) · `target_mask` [B,T] bool (what is predicted, where it is
not all) · `segment` [B,T] int32 (of several examples in a row: 0, 1, ..., -1 in padding) · `position` [B,T] int32 (from 0 in
each segment) · `image_index` [B,T] int32 (of images among texts: image * P + token, -1 where there is text) ·
`id` [B] int64 · `weight` [B] float32 (0 marks a padding row).
"""
Batch = dict[str, Rows]
"""One global batch by named parts (`pairs`, `documents`, `images`, ...), each with its own number of rows; see core/parts.py.
Models learn from parts; capabilities (`embed_image`, `prefill`, ...) take the Rows of one.
"""


def sides_of(image_size: Any) -> tuple[int, int]:
    """Rows and columns of pixels of an image size, one number for squares."""
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


class Term(NamedTuple):
    """A loss term as a sum and a count over samples; the loss is `weight * sum / max(count, 1)` over the global batch."""

    sum: Array
    count: Array
    weight: float | Array = 1.0


Terms = dict[str, Term]
Aux = dict[str, Term]
"""Measurements, not losses; `weight` is ignored and `sum / max(count, 1)` is logged."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a model must know of a tokenizer: its size and special ids, and the text length T of the run."""

    size: int
    length: int
    pad: int = 0
    bos: int = 1
    eos: int = 2


FIXED = "fixed"
"""The part of a decoder's cache that no step changes, such as what a cross-attention looks at. Its rows are those that were
prefilled; the rest may hold several continuations of each, side by side."""


class TrainState(NamedTuple):
    """All that changes while training. `rng` is a typed key; step t uses `fold_in(rng, t)`."""

    step: Array
    params: Params
    opt: Any
    extra: Extra
    rng: Array


class Model(Protocol):
    """What the machine knows of a model. All state is in `params` and `extra`, ordinary pytrees."""

    mixes_rows: ClassVar[bool]
    """Whether `per_example` looks at other rows of its batch (batch statistics, mining inside the batch).

    With `train.accumulate` such a model sees one micro-batch at a time: its gradient is that of as many micro-batches on any
    mesh, and not that of the whole batch at once. The run says so, and a plan proposes no accumulation for it.
    """

    def init(self, rng: Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters (fp32, boxed with their letters) and extra state, from shapes in `batch`."""
        ...

    def begin(self, params: Params, extra: Extra) -> Extra:
        """`extra` of step 0 from the parameters of step 0, those loaded by `init_from` included: EMA and momentum copies.

        Traced by jit, before the first step of a run and not when it resumes. Shapes and dtypes are those of `extra`.
        """
        ...

    def per_example(
        self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool
    ) -> tuple[Features, Terms, Aux]:
        """The half that needs no other sample (but see `mixes_rows`): features [B,...], terms and measurements."""
        ...

    def across_batch(
        self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool
    ) -> tuple[Terms, Aux]:
        """The half that sees the features of the whole global batch. Its names differ from those of `per_example`."""
        ...

    def after_update(self, params: Params, extra: Extra, features: Features, *, step: Array, rng: Array) -> Extra:
        """`extra` after an optimizer step: momentum encoders, queues, codebooks. Shapes and dtypes stay.

        params: after the update. features: of the whole global batch in its order, by the parameters before the update and
        without gradient. step: the number of the step, from 0.
        """
        ...

    def capabilities(self) -> dict[str, Callable]:
        """Pure functions `(params, extra, ...)` by their agreed names: `prefill`, `extend`, `attention`, ..."""
        ...

    def adapt(self, params: Params, target: Params) -> Params:
        """Reshapes loaded parameters to this model's (position tables at another resolution)."""
        ...

    def train_flops(self, batch: Batch, flags: Any = None) -> float:
        """FLOPs of one forward and backward pass over a global batch, of which only the shapes count.

        flags: a tree like the parameters', which of them train; None: all. Recomputation is not counted, so that this is what
        model FLOPs utilisation is a share of (see core.flops, which counts it by default).
        """
        ...


class BaseModel:
    """The protocol's defaults; a model inherits them and states only what it adds."""

    mixes_rows: ClassVar[bool] = False

    def begin(self, params, extra):
        return extra

    def across_batch(self, params, extra, features, *, step, train):
        return {}, {}

    def after_update(self, params, extra, features, *, step, rng):
        return extra

    def capabilities(self):
        return {}

    def adapt(self, params, target):
        return params

    def train_flops(self, batch, flags=None):
        from simvlm_jax.core.flops import model_flops  # which loads jax

        return sum(model_flops(self, batch, flags))
