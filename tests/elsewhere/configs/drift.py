"""A config from another folder, for its own model and its own data (tests/test_promise.py)."""

from pathlib import Path

from configs import parts
from simvlm_jax.core.build import spec


def get_config(variant: str = ""):
    """Two steps at a time on the pictures beside it."""
    config = parts.contrastive(spec("models.drift:Drift"), variant or "smoke")
    config.data.parts.pairs.path = str(Path(__file__).resolve().parents[1] / "data" / "train.jsonl")
    config.data.eval.path = str(Path(__file__).resolve().parents[1] / "data" / "test.jsonl")
    config.optimizer.update(schedule="constant", warmup=0.0, decay=())
    config.train.steps = 4
    config.checkpoint.every = 2
    return config
