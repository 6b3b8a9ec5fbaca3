"""simvlm_jax: vision-language models in JAX. Importing this package loads neither jax nor TensorFlow.

`simvlm_jax.load("runs/prefixlm")` gives a trained run that can be asked (see api.py).
"""

import os
import sys

if (
    sys.argv[:1] == ["-m"]
    and not sys.flags.safe_path
    and sys.path
    and os.path.abspath(sys.path[0] or ".") == os.getcwd()
):
    del sys.path[0]  # `python -m` puts the current folder there; nothing that lies in it is to be run by its name

from typing import Any

__version__ = "0.1.0"


def load(path: Any, step: int | None = None, *, batch_size: int = 32, trust: Any = ()) -> Any:
    """A trained run with the methods caption, ask, embed, similarity and classify; see `simvlm_jax.api.load`."""
    from simvlm_jax import api

    return api.load(path, step, batch_size=batch_size, trust=trust)
