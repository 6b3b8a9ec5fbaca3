"""XLA's flags and options: for the releases that know them, and never over those that a user gave."""

import importlib.metadata
import os

import pytest

from simvlm_jax.parallel.environment import CPU_FLAGS, decoding_options, setup_xla

YNN = "xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture
def jaxlib(monkeypatch):
    """`jaxlib(release)`: as if that release were installed."""
    real = importlib.metadata.version
    return lambda release: monkeypatch.setattr(
        importlib.metadata, "version", lambda name: release if name == "jaxlib" else real(name)
    )


@pytest.mark.parametrize("release", CPU_FLAGS)
def test_flags_of_training_are_set_and_steps_of_decoding_have_others(release, jaxlib, monkeypatch):
    jaxlib(release)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    setup_xla()
    assert os.environ["XLA_FLAGS"].split() == [*CPU_FLAGS[release], "--xla_dump_to=x"]
    assert decoding_options("cpu") == {YNN: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    assert decoding_options("tpu") == decoding_options("gpu") == {}


def test_what_a_user_gave_goes_before(jaxlib, monkeypatch):
    jaxlib("0.10.2")
    monkeypatch.setenv("XLA_FLAGS", f"--{YNN}=LIBRARY_FUSION_TYPE_ELTWISE")
    setup_xla()
    assert os.environ["XLA_FLAGS"].count(YNN) == 1
    assert decoding_options("cpu") == {}


def test_a_release_that_was_not_tried_gets_no_flag(jaxlib, monkeypatch):
    jaxlib("99.0")
    monkeypatch.setenv("XLA_FLAGS", "")
    setup_xla()
    assert os.environ["XLA_FLAGS"] == ""
    assert decoding_options("cpu") == {}
