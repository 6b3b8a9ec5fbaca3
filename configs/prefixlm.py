"""SimVLM (arXiv 2108.10904): prefix language modelling over images and text."""

from configs import parts
from simvlm_jax.core.build import spec


def get_config(variant: str = ""):
    config = parts.base()
    config.model = spec("simvlm_jax.models.simvlm:SimVLM", size="tiny", compute=spec("simvlm_jax.nn.sizes:Compute"))
    config.data.train.transforms = parts.image_text_transforms(64)
    config.data.train.cache = True
    config.data.eval.splits = dict(test="test[:60%]", compositional="compositional[:60%]", many="test[60%:]")
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=50.0)
    config.train.steps = 800
    return config
