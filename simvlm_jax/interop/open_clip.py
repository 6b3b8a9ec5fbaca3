"""What open_clip's families share: its configs, blocks and image tower, and how they are compared with its modules."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop.parts import fused_attention, linear, norm
from simvlm_jax.interop.pixels import Pixels
from simvlm_jax.interop.reference import Arrays, random_images, random_texts, tensor
from simvlm_jax.interop.table import Row, under
from simvlm_jax.interop.transforms import UNSQUEEZED, patches

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
USUAL = Pixels(224, {"how": "shorter", "filter": "bicubic"}, MEAN, DEVIATION)


def check(said: dict[str, Any]) -> None:
    """Refuses what open_clip's configs can say and is not known here.

    Raises:
      BadFile: it is said.
    """
    vision, text = said.get("vision_cfg", {}), said.get("text_cfg", {})
    usual = {
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "final_ln_after_pool": (False,),
        "no_ln_pre": (False,),
    }
    strange = [
        f"vision_cfg.{k} {vision[k]!r}" for k, values in usual.items() if k in vision and vision[k] not in values
    ]
    named = ("timm_model_name", "ls_init_value", "patch_dropout", "act_kwargs", "norm_kwargs", "block_type", "qk_norm")
    strange += [f"{part}.{k}" for part, c in (("vision_cfg", vision), ("text_cfg", text)) for k in named if c.get(k)]
    strange += [f"text_cfg.{k}" for k in ("hf_model_name", "no_causal_mask", "proj_bias") if text.get(k)]
    if text.get("pool_type", "argmax") not in ("argmax", "eos"):
        strange.append(f"text_cfg.pool_type {text['pool_type']!r}")
    if strange:
        raise BadFile(f"this open_clip model has {', '.join(strange)}, which is not known here")


def authors_block(size: Any) -> tuple[Row, ...]:
    """A block of OpenAI's and open_clip's transformers."""
    return (
        *norm("ln_1", "norm_attention"),
        *fused_attention("attn", "attention", size.heads),
        *norm("ln_2", "norm_mlp"),
        *linear("mlp.c_fc", "mlp/up"),
        *linear("mlp.c_proj", "mlp/down"),
    )


def authors_vit(size: Any, patch: int) -> tuple[Row, ...]:
    """The image tower of OpenAI and open_clip, a ViT."""
    return (
        Row("class_embedding", "class_token/tokens", UNSQUEEZED),
        Row("positional_embedding", "position"),
        Row("conv1.weight", "patches/kernel", patches(patch)),
        *norm("ln_pre", "norm_before"),
        *under("transformer.resblocks.*.", "stack/layer_*/", authors_block(size)),
        *norm("ln_post", "norm"),
    )


def preprocess(data: Any, mean: Any, deviation: Any) -> dict[str, Any]:
    """preprocess_cfg of an open_clip_config.json."""
    fit = dict(data.get("fit") or {})
    how = fit.get("how") or ("whole" if data.whole else "shorter")
    modes = {"whole": "squash", "shorter": "shortest", "longer": "longest"}
    if how not in modes or fit.get("side") not in (None, 0, min(sides_of(data.image_size))):
        raise ValueError(f"open_clip has no word for pictures made ready by {fit} (config.data.fit); use --format hf")
    made = dict(
        mean=list(mean), std=list(deviation), interpolation=fit.get("filter", "bicubic"), resize_mode=modes[how]
    )
    return made | ({"fill_color": list(fit.get("fill") or (0, 0, 0))} if how == "longer" else {})


def rows_of(model: Any) -> Arrays:
    """Random images and texts, and both as the references take them."""
    v = model.vocabulary  # of whose pieces EOS is the last, by which open_clip finds it
    images, texts = random_images(sides_of(model.image_size), 4), random_texts(v, 4, below=v.eos)
    mean, deviation = (np.asarray(x, np.float32) for x in (model.sizes.mean, model.sizes.deviation))
    text, mask = texts["text"], texts["text_mask"]
    last = mask.sum(1) - 1  # every text ends
    text[np.arange(len(text)), last] = v.eos
    tokens = np.zeros((len(text), model.text_length), np.int32)
    tokens[:, 0], tokens[:, 1 : 1 + text.shape[1]] = v.bos, np.where(mask, text, 0)
    made = ((images["image"][:, 0] / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
    return {**images, **texts, "tokens": tokens, "pixels": made}


def theirs(module: Any, rows: Arrays) -> Arrays:
    """Outputs of a model of open_clip."""
    image, text = (
        f(tensor(rows[k]), normalize=True) for f, k in ((module.encode_image, "pixels"), (module.encode_text, "tokens"))
    )
    logits = module.logit_scale.exp() * image @ text.T
    return {"image_embeds": image.numpy(), "text_embeds": text.numpy(), "logits": logits.numpy()}


def ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    """The same of a dual encoder."""
    able = model.capabilities()
    image, text = (able[f"embed_{k}"](params, extra, rows) for k in ("image", "text"))
    logits = able["logit_scale"](params, extra) * able["similarity"](params, extra, image, text)
    found = {"image_embeds": image, "text_embeds": text, "logits": logits}
    tower = params["image_tower"]
    if "stack" in tower:
        states = model.intermediates(params, "pooled", rows["image"])["image_tower"]["last"][0]
        found["image_states"] = states
    return {k: np.asarray(x) for k, x in found.items()}


def load(folder: Path, kind: str) -> Any:
    """A model of open_clip, of one of its classes, from a folder of its own."""
    try:
        import open_clip
        import torch
    except ImportError as e:
        raise ValueError(f"comparing with the reference needs torch and open_clip ({e}): pip install .[parity]") from e
    from safetensors.torch import load_file

    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    module = getattr(open_clip, kind)(**{k: v for k, v in config.items() if k != "custom_text"})
    file = next(p for p in (folder / "model.safetensors", folder / "open_clip_model.safetensors") if p.is_file())
    missing = module.load_state_dict(load_file(file), strict=False)
    lost = [k for k in missing.missing_keys if not k.endswith(("num_batches_tracked", "attn_mask"))]
    if lost or missing.unexpected_keys:
        raise ValueError(f"open_clip does not find {', '.join([*lost, *missing.unexpected_keys])[:200]} in {folder}")
    return module.to(torch.float32).eval()
