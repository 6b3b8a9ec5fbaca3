"""The public config, shrunken until a process takes seconds: for tests that start many processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import prefixlm


def get_config(variant: str = ""):
    config = prefixlm.get_config(variant)
    config.data.train.update(path="scenes/captions-80_8_32_16", split="train", cache=False)
    config.data.documents.path = "scenes/text-24_8_8_8"
    config.data.image_size = 32
    config.text.length = 24
    config.optimizer.update(name="adamw", learning_rate=1e-3)
    config.train.update(steps=16, batch_size=8)
    config.eval.update(batch_size=8, examples=8)
    config.checkpoint.every = 4
    config.log.every = 1
    config.hosts.patience = 10.0
    return config
