"""simvlm_jax: vision-language models in JAX. Importing this package loads neither jax nor TensorFlow.

`simvlm_jax.load("runs/prefixlm")` gives a trained run that can be asked (see api.py).
"""

from typing import Any

__version__ = "0.1.0"


def load(path: Any, step: int | None = None, *, batch_size: int = 32, trust: Any = ()) -> Any:
    """A trained run with the methods caption, ask, embed, similarity and classify; see `simvlm_jax.api.load`."""
    from simvlm_jax import api

    return api.load(path, step, batch_size=batch_size, trust=trust)
