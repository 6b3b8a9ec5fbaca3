"""simvlm_jax: vision-language models in JAX. Importing this package loads neither jax nor TensorFlow."""

__version__ = "0.1.0"
