"""CLIP: OpenAI's own weights (ViT and ResNet), open_clip's, whose names are the same, and transformers'."""

import functools
import re
from typing import Any

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import open_clip, pixels
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record, whole
from simvlm_jax.interop.parts import (
    activation_named,
    activation_of,
    batch_norm,
    compute,
    norm,
    open_clip_pixels,
    separate_attention,
    stack_of,
    transformers_block,
)
from simvlm_jax.interop.pixels import Pixels, pixels_of
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import CONVOLUTION, NUMBER, TRANSPOSED, UNSQUEEZED, patches
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.clip"
_TORCHVISION = {**open_clip.USUAL.fit, "rounding": "even"}
_DEFAULTS = {
    "vision": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    | dict(image_size=224, patch_size=32),
    "text": dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
    | dict(max_position_embeddings=77),
}
"""transformers' own, which its older versions leave out of a config.json."""
_CONSTANTS = ("input_resolution", "context_length", "vocab_size")


def _plan(source: Source, options: Options) -> Plan:
    if source.layout == "hf":
        size, seen, length = _of_transformers(source)
    else:
        size, seen, length = _of_the_authors(source)
    found = tokenizer_of(source, options.tokenizer)
    spelling = "" if source.layout == "hf" else "mended"
    pieces = [source.tensors.shape(k)[0] for k in source.tensors if k.endswith("token_embedding.weight")]
    rows = pieces[0] if pieces else whole(source.config.get("text_config", {}), "vocab_size", default=49_408)
    tokenizer = found.tokenizer(options.length or length - 1, spelling, rows)
    return Plan(of_record(_MODEL, "CLIP", size=size, compute=compute()), tokenizer, seen.data)


def _size(image: dict[str, Any], text: dict[str, int], seen: Pixels, **fields: Any) -> Any:
    kind = ("nn.resnet", "ResNetSize") if "depths" in image else ("nn.sizes", "Size")
    return of_record(
        _MODEL,
        "Sizes",
        image=of_record(*kind, **image),
        text=of_record("nn.sizes", "Size", **text),
        mean=seen.mean,
        deviation=seen.deviation,
        **fields,
    )


def _of_transformers(source: Source) -> tuple[Any, Pixels, int]:
    """(size, pixels, positions of a text) of a config.json of transformers."""
    c = source.config
    vision, text = ({**usual, **c.get(f"{k}_config", {})} for k, usual in _DEFAULTS.items())
    towers = [stack_of(t) for t in (vision, text)]
    acts = {activation_of(t, "hidden_act", "quick_gelu") for t in (vision, text)}
    epsilons = {float(t.get("layer_norm_eps", 1e-5)) for t in (vision, text)}
    if len(acts) > 1 or len(epsilons) > 1:
        raise BadFile("the two towers of this CLIP differ in activation or epsilon, which is not known here")
    seen = pixels_of(source.folder, whole(vision, "image_size"), open_clip.USUAL)
    more = dict(patch=whole(vision, "patch_size"), width=whole(c, "projection_dim", default=512))
    size = _size(towers[0], towers[1], seen, activation=acts.pop(), epsilon=epsilons.pop(), **more)
    return size, seen, whole(text, "max_position_embeddings")


def _of_the_authors(source: Source) -> tuple[Any, Pixels, int]:
    """(size, pixels, positions of a text) by the shapes of arrays, and by an open_clip_config.json where there is one."""
    tensors, said = source.tensors, source.config.get("model_cfg", {})
    shape, start = tensors.shape, "text." if "text.token_embedding.weight" in tensors else ""
    open_clip.check(said)
    if f"{start}token_embedding.weight" not in tensors:
        raise BadFile(f"{source.file} is no CLIP: it has no token_embedding.weight")
    depth = lambda pattern: 1 + max((int(m[1]) for k in tensors if (m := re.match(pattern, k))), default=-1)  # noqa: E731
    length, width = shape(f"{start}positional_embedding")
    text = dict(width=width, depth=depth(rf"{re.escape(start)}transformer\.resblocks\.(\d+)\."))
    text |= dict(heads=whole(said.get("text_cfg", {}), "heads", default=max(width // 64, 1)))
    text["mlp"] = shape(f"{start}transformer.resblocks.0.mlp.c_fc.weight")[0]
    vision = said.get("vision_cfg", {})
    activation = "quick_gelu" if said.get("quick_gelu", not said) else "gelu_exact"
    if "visual.layer1.0.conv1.weight" in tensors:
        inner = shape("visual.layer1.0.conv1.weight")[0]
        E = shape("visual.attnpool.c_proj.weight")[0]
        tokens, features = shape("visual.attnpool.positional_embedding")
        image: dict[str, Any] = dict(
            width=inner, depths=tuple(depth(rf"visual\.layer{i}\.(\d+)\.") for i in range(1, 5))
        )
        image |= dict(heads=features // whole(vision, "head_width", default=64), norm="batch")
        patch, side = 32, round((tokens - 1) ** 0.5) * 32
    else:
        D, _, patch, _ = shape("visual.conv1.weight")
        E = shape("visual.proj")[1]
        image = dict(width=D, depth=depth(r"visual\.transformer\.resblocks\.(\d+)\."))
        image |= dict(heads=D // whole(vision, "head_width", default=64))
        image["mlp"] = shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0]
        side = round((shape("visual.positional_embedding")[0] - 1) ** 0.5) * patch
    given = vision.get("image_size", side)
    seen = open_clip_pixels(
        source.config, given if isinstance(given, int) else tuple(given), open_clip.USUAL._replace(fit=_TORCHVISION)
    )
    return _size(image, text, seen, patch=patch, width=E, activation=activation), seen, length


# ---- what arrays are called ----------------------------------------------------------------------------------------


def _authors_resnet(size: Any) -> tuple[Row, ...]:
    rows: list[Row] = []
    for i in range(3):
        rows += [
            Row(f"conv{i + 1}.weight", f"root_{i}/kernel", CONVOLUTION),
            *batch_norm(f"bn{i + 1}", f"root_norm_{i}"),
        ]
    for i, depth in enumerate(size.depths):
        for j in range(depth):
            theirs, ours = f"layer{i + 1}.{j}.", f"stage_{i}_block_{j}/"
            for k in range(3):
                rows.append(Row(f"{theirs}conv{k + 1}.weight", f"{ours}conv_{k}/kernel", CONVOLUTION))
                rows += batch_norm(f"{theirs}bn{k + 1}", f"{ours}norm_{k}")
            rows.append(Row(f"{theirs}downsample.0.weight", f"{ours}conv_shortcut/kernel", CONVOLUTION))
            rows += batch_norm(f"{theirs}downsample.1", f"{ours}norm_shortcut")
    attention = separate_attention([f"attnpool.{k}_proj" for k in "qkvc"], "attention", size.heads)
    return (*rows, Row("attnpool.positional_embedding", "position"), *attention)


def authors_table(model: Any, start: str = "") -> Table:
    """OpenAI's and open_clip's names. start: before those of the text tower ("text." of open_clip's custom models)."""
    s = model.sizes
    resnet = hasattr(s.image, "depths")
    tower = _authors_resnet(s.image) if resnet else open_clip.authors_vit(s.image, s.patch)
    text = (
        Row("token_embedding.weight", "text_tower/embedding"),
        Row("positional_embedding", "text_tower/position"),
        *under("transformer.resblocks.*.", "text_tower/stack/layer_*/", open_clip.authors_block(s.text)),
        *norm("ln_final", "text_tower/norm"),
        Row("text_projection", "text_projection/kernel"),
    )
    rows = (
        *under("visual.", "image_tower/", tower),
        Row("visual.proj", "image_projection/kernel"),
        *under(start, "", text),
        Row("logit_scale", "logit_scale/log", NUMBER),
    )
    dropped = dict.fromkeys(_CONSTANTS, "a number that shapes tell")
    dropped |= {f"{start}attn_mask": "the mask of causal attention"}
    dropped |= {
        f"{r.theirs.removesuffix('running_mean')}num_batches_tracked": _COUNTER
        for r in rows
        if "running_mean" in r.theirs
    }
    return Table(rows, dropped)


_COUNTER = "how many batches its statistics have seen"


def _transformers_table(model: Any) -> Table:
    s = model.sizes
    vision = (
        Row("embeddings.class_embedding", "class_token/tokens", UNSQUEEZED),
        Row("embeddings.position_embedding.weight", "position"),
        Row("embeddings.patch_embedding.weight", "patches/kernel", patches(s.patch)),
        *norm("pre_layrnorm", "norm_before"),
        *under("encoder.layers.*.", "stack/layer_*/", transformers_block(s.image)),
        *norm("post_layernorm", "norm"),
    )
    text = (
        Row("embeddings.token_embedding.weight", "embedding"),
        Row("embeddings.position_embedding.weight", "position"),
        *under("encoder.layers.*.", "stack/layer_*/", transformers_block(s.text)),
        *norm("final_layer_norm", "norm"),
    )
    rows = (
        *under("vision_model.", "image_tower/", vision),
        *under("text_model.", "text_tower/", text),
        Row("visual_projection.weight", "image_projection/kernel", TRANSPOSED),
        Row("text_projection.weight", "text_projection/kernel", TRANSPOSED),
        Row("logit_scale", "logit_scale/log", NUMBER),
    )
    constants = [f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")]
    return Table(rows, dict.fromkeys(constants, "a constant"))


def _table(source: Source, model: Any) -> Table:
    if source.layout == "hf":
        return _transformers_table(model)
    return authors_table(model, "text." if "text.token_embedding.weight" in source.tensors else "")


# ---- configs -------------------------------------------------------------------------------------------------------


def _write_hf(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, v = model.sizes, tokenizer.vocabulary
    Y, X = sides_of(model.image_size)
    if hasattr(s.image, "depths") or s.stem is not None or Y != X:
        raise ValueError(
            "transformers' CLIP has a plain ViT of square images; this one has another tower: use --format open_clip"
        )

    def tower(size: Any, **more: Any) -> dict[str, Any]:
        shape = dict(hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.heads)
        act = dict(intermediate_size=size.mlp, hidden_act=activation_named(s.activation), layer_norm_eps=s.epsilon)
        return {**shape, **act, "projection_dim": s.width, **more}

    text = tower(s.text, vocab_size=v.size, max_position_embeddings=model.text_length)
    text |= dict(bos_token_id=v.bos, eos_token_id=v.eos, pad_token_id=v.pad)
    config = dict(
        architectures=["CLIPModel"],
        model_type="clip",
        projection_dim=s.width,
        text_config=text,
        vision_config=tower(s.image, image_size=Y, patch_size=s.patch),
        torch_dtype="float32",
    )
    files = {pixels.FILE: pixels.written(data, s.mean, s.deviation, "CLIPImageProcessor"), **special_files(tokenizer)}
    return Written(_transformers_table(model), {"config.json": config, **files})


def _write_open_clip(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, (Y, X) = model.sizes, sides_of(model.image_size)
    resnet = hasattr(s.image, "depths")
    if s.stem is not None or s.activation not in ("quick_gelu", "gelu_exact") or s.epsilon != 1e-5:
        raise ValueError(
            "open_clip's CLIP has no conv stem, GELU or quick GELU, and an epsilon of 1e-5; this one has others"
        )
    if resnet and s.image.norm != "batch":
        raise ValueError("open_clip's ResNets have batch statistics, and this one is normalised by group")
    vision: dict[str, Any] = dict(image_size=Y if Y == X else [Y, X])
    if resnet:
        vision |= dict(layers=list(s.image.depths), width=s.image.width, head_width=s.image.features // s.image.heads)
    else:
        vision |= dict(layers=s.image.depth, width=s.image.width, head_width=s.image.key_width, patch_size=s.patch)
        vision["mlp_ratio"] = s.image.mlp / s.image.width
    text = dict(context_length=model.text_length, vocab_size=tokenizer.vocabulary.size)
    text |= dict(width=s.text.width, heads=s.text.heads, layers=s.text.depth)
    text |= {"mlp_ratio": s.text.mlp / s.text.width}
    config = dict(
        model_cfg=dict(embed_dim=s.width, quick_gelu=s.activation == "quick_gelu", vision_cfg=vision, text_cfg=text),
        preprocess_cfg=open_clip.preprocess(data, s.mean, s.deviation),
    )
    return Written(authors_table(model), {"open_clip_config.json": config, **special_files(tokenizer)})


# ---- the reference -------------------------------------------------------------------------------------------------


def _theirs_hf(module: Any, rows: Arrays) -> Arrays:
    out = module(input_ids=tensor(rows["tokens"]), pixel_values=tensor(rows["pixels"]))
    return {
        "image_states": out.vision_model_output.last_hidden_state.numpy(),
        "image_embeds": out.image_embeds.numpy(),
        "text_embeds": out.text_embeds.numpy(),
        "logits": out.logits_per_image.numpy(),
    }


_REFERENCES = {
    "hf": Reference(lambda folder: pretrained("CLIPModel", folder), open_clip.rows_of, _theirs_hf, open_clip.ours),
    "open_clip": Reference(
        functools.partial(open_clip.load, kind="CLIP"), open_clip.rows_of, open_clip.theirs, open_clip.ours
    ),
}
FAMILIES = {
    "clip": Family(
        resolve(f"simvlm_jax.{_MODEL}:CLIP"),
        ("clip", "open_clip"),
        _plan,
        _table,
        {"hf": _write_hf, "open_clip": _write_open_clip},
        _REFERENCES,
    )
}
