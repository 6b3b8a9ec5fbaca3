"""Fixtures of the tests of models."""

import jax
import pytest


@pytest.fixture
def float64():
    """Equalities in float64, where 1e-10 means equal."""
    with jax.enable_x64(True):
        yield
