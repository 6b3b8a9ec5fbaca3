"""What configs share: sections with every field that the machine reads, at their defaults."""

from ml_collections import ConfigDict, config_dict

from simvlm_jax.core.build import spec

TRANSFORMS = "simvlm_jax.data.transforms"


def text_transforms(empty: float = 0.0):
    """Text to ids, and the draws that objectives need (`empty`: share of prefixes that hold no text on purpose)."""
    prefix = spec(f"{TRANSFORMS}:DrawPrefix", empty=empty)
    return (spec(f"{TRANSFORMS}:Tokenize"), prefix, spec(f"{TRANSFORMS}:DrawSeed"))


def image_text_transforms(image_size, smallest: float = 1.0, mirror: float = 0.0, empty: float = 0.0):
    """Pixels first (see transforms.Pixels), then one caption as text."""
    pixels = spec(f"{TRANSFORMS}:Pixels", size=image_size, smallest=smallest, mirror=mirror)
    return (pixels, spec(f"{TRANSFORMS}:ChooseCaption"), *text_transforms(empty))


def decoding(**fields) -> ConfigDict:
    """How text is generated: see decode/decoding.py. Sampling is `sampler.temperature` and its companions."""
    return spec("simvlm_jax.decode.decoding:Decoding", sampler=spec("simvlm_jax.decode.sampling:Sampler"), **fields)


def captioning(prompt: str = "", **how) -> ConfigDict:
    """The captioning suite."""
    return spec("simvlm_jax.eval.captioning:Captioning", prompt=prompt, how=decoding(**how))


def base() -> ConfigDict:
    """An experiment without a model."""
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                image_size=64,
                whole=False,
                train=dict(path="scenes/captions", split="train", transforms=(), cache=False),
                documents=dict(path="scenes/text", split="train", batch_size=0, transforms=text_transforms()),
                eval=dict(path=config_dict.placeholder(str), split="validation", splits=dict(test="test")),
                labels=dict(size=0, at_least=1),
                held_out=0.05,
                quarantine=0.05,
                threads=2,
            ),
            text=dict(model=config_dict.placeholder(str), vocabulary=320, length=0, corpus=10_000),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            hosts=dict(patience=60.0, late=30.0),
            optimizer=spec("simvlm_jax.train.optimizer:Optimizer"),
            train=dict(steps=1000, batch_size=64, accumulate=1, retries=2, trainable=(), init_from=()),
            eval=dict(every=0, examples=0, batch_size=100, suites=dict(captions=captioning())),
            checkpoint=dict(every=500, latest=2, keep_every=0, best=config_dict.placeholder(str)),
            log=dict(every=10),
        )
    )
