"""CoCa as open_clip trains and writes it."""

import functools
import re
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import open_clip
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record, whole
from simvlm_jax.interop.parts import compute, fused_attention, linear, norm, open_clip_pixels
from simvlm_jax.interop.reference import Arrays, Reference, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import NUMBER, TRANSPOSED, UNSQUEEZED, heads_bias, heads_out, packed
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.coca_open_clip"


def _plan(source: Source, options: Options) -> Plan:
    tensors, said = source.tensors, source.config.get("model_cfg", {})
    vision, text, upper = (said.get(f"{k}_cfg", {}) for k in ("vision", "text", "multimodal"))
    open_clip.check({**said, "text_cfg": {k: v for k, v in text.items() if k != "hf_model_name"}})
    if options.length:
        raise ValueError("open_clip's CoCa has texts of one length, that of its positions; leave out --length")
    if "text.cls_emb" not in tensors or "visual.attn_pool.query" not in tensors:
        raise BadFile(f"{source.file} is no CoCa of open_clip: it has no text.cls_emb or visual.attn_pool.query")
    if text.get("hf_model_name") or text.get("correct_cls_mask") or isinstance(vision.get("attentional_pool"), str):
        raise BadFile(
            "this CoCa has a text tower of transformers, a corrected mask or two poolers, which is not known here"
        )
    shape = tensors.shape
    depth = lambda p: 1 + max((int(m[1]) for k in tensors if (m := re.match(p, k))), default=-1)  # noqa: E731

    def stack(start: str, width: int, heads: int) -> Any:
        blocks = re.escape(f"{start}resblocks.") + r"(\d+)\."
        mlp = shape(f"{start}resblocks.0.mlp.c_fc.weight")[0]
        return of_record("nn.sizes", "Size", width=width, depth=depth(blocks), heads=heads, mlp=mlp)

    W, _, patch, _ = shape("visual.conv1.weight")
    positions, D = shape("text.positional_embedding")
    queries, E = shape("visual.attn_pool.query")
    heads = whole(text, "heads", default=max(D // 64, 1))
    side = round((shape("visual.positional_embedding")[0] - 1) ** 0.5) * patch
    given = vision.get("image_size", side)
    usual = open_clip.USUAL._replace(fit={**open_clip.USUAL.fit, "rounding": "even"})
    seen = open_clip_pixels(source.config, given if isinstance(given, int) else tuple(given), usual)
    size = of_record(
        _MODEL,
        "Sizes",
        image=stack("visual.transformer.", W, W // whole(vision, "head_width", default=64)),
        patch=patch,
        lower=stack("text.transformer.", D, heads),
        upper=stack("text_decoder.", D, whole(upper, "heads", default=heads)),
        width=E,
        queries=queries,
        pool_heads=whole(vision, "attn_pooler_heads", default=8),
        activation="quick_gelu" if said.get("quick_gelu") else "gelu_exact",
        mean=seen.mean,
        deviation=seen.deviation,
    )
    found = tokenizer_of(source, options.tokenizer)
    found = found._replace(roles=found.roles._replace(pad=0))  # which open_clip hides, and sees the first of
    tokenizer = found.tokenizer(positions - 2, "mended", shape("text.token_embedding.weight")[0])
    model = of_record(_MODEL, "OpenCoCa", size=size, compute=compute())
    return Plan(model, tokenizer, seen.data)


def names(model: Any) -> Table:
    """open_clip's names."""
    s = model.sizes
    H = s.pool_heads
    three = [f"attention/{k}" for k in ("query", "key", "value")]
    if s.width == s.image.width:
        pool = fused_attention("attn", "attention", H)
    else:  # torch keeps maps of different inputs apart, and their biases together
        maps = [Row(f"attn.{k[10]}_proj_weight", k, heads_out(H)) for k in three]
        bias = Row("attn.in_proj_bias", tuple(f"{k}_bias" for k in three), packed(*[heads_bias(H)] * 3))
        pool = (*maps, bias, *fused_attention("attn", "attention", H)[2:])
    pooler = (Row("query", "query/tokens"), *pool, *norm("ln_q", "query_norm"), *norm("ln_k", "key_norm"))
    tower = [r for r in open_clip.authors_vit(s.image, s.patch) if not r.theirs.startswith("ln_post.")]
    text = (
        Row("token_embedding.weight", "embedding"),
        Row("positional_embedding", "text_position"),
        Row("cls_emb", "cls/tokens", UNSQUEEZED),
        *under("transformer.resblocks.*.", "lower/layer_*/", open_clip.authors_block(s.lower)),
        *norm("ln_final", "cls_norm"),
        Row("text_projection", "text_projection/kernel"),
    )
    look = (
        *norm("ln_1", "norm_cross"),
        *fused_attention("attn", "cross_attention", s.upper.heads),
        *norm("ln_2", "norm_mlp"),
        *linear("mlp.c_fc", "mlp/up"),
        *linear("mlp.c_proj", "mlp/down"),
    )
    rows = (
        *under("visual.", "image_tower/", tower),
        *under("visual.attn_pool.", "pooler/", pooler),
        *norm("visual.ln_post", "pool_norm"),
        Row("visual.proj", "image_projection/kernel"),
        *under("text.", "", text),
        *under("text_decoder.resblocks.*.", "upper_*/", open_clip.authors_block(s.upper)),
        *under("text_decoder.cross_attn.*.", "look_*/", look),
        *norm("text_decoder.cross_attn.*.ln_1_kv", "look_norm_*"),
        *norm("text_decoder.ln_final", "norm"),
        Row("text_decoder.text_projection", "softmax", TRANSPOSED),
        Row("logit_scale", "logit_scale/log", NUMBER),
    )
    return Table(rows, {f"{k}.attn_mask": "the mask of causal attention" for k in ("text", "text_decoder")})


def _written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, (Y, X) = model.sizes, sides_of(model.image_size)

    def tower(size: Any, **more: Any) -> dict[str, Any]:
        return dict(width=size.width, layers=size.depth, mlp_ratio=size.mlp / size.width, **more)

    length = model.vocabulary.length + 1
    words = dict(context_length=length, vocab_size=model.vocabulary.size)
    vision = dict(
        attentional_pool=True, attn_pooler_queries=s.queries, attn_pooler_heads=s.pool_heads, output_tokens=True
    )
    vision |= dict(image_size=Y if Y == X else [Y, X], patch_size=s.patch, head_width=s.image.key_width)
    config = dict(
        embed_dim=s.width,
        quick_gelu=s.activation == "quick_gelu",
        vision_cfg=tower(s.image, **vision),
        text_cfg=tower(s.lower, **words, heads=s.lower.heads, embed_cls=True, output_tokens=True),
        multimodal_cfg=tower(s.upper, **words, heads=s.upper.heads),
        custom_text=True,
    )
    files = {"model_cfg": config, "preprocess_cfg": open_clip.preprocess(data, s.mean, s.deviation)}
    return Written(names(model), {"open_clip_config.json": files, **special_files(tokenizer)})


# ---- the reference -------------------------------------------------------------------------------------------------


def _rows(model: Any) -> Arrays:
    rows = open_clip.rows_of(model)
    text, mask = rows["text"], rows["text_mask"]  # as long as the run's, of which open_clip's mask is one place off
    width = model.vocabulary.length - text.shape[1]
    padded = {"text": np.pad(text * mask, ((0, 0), (0, width))), "text_mask": np.pad(mask, ((0, 0), (0, width)))}
    return {**rows, **padded}


def _theirs(module: Any, rows: Arrays) -> Arrays:
    out = module(tensor(rows["pixels"]), tensor(rows["tokens"]))
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    found = {"image_embeds": out["image_features"], "text_embeds": out["text_features"], "logits": logits}
    return {**{k: x.numpy() for k, x in found.items()}, "caption_logits": out["logits"].numpy()[rows["text_mask"]]}


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    states, table = model.apply(params, "captions", rows["image"], *model.lay_out(rows["text"], rows["text_mask"]))
    captions = np.asarray(states @ table.T)[rows["text_mask"]]
    found = {k: x for k, x in open_clip.ours(model, params, extra, rows).items() if k != "image_states"}
    return {**found, "caption_logits": captions}


FAMILIES = {
    "coca": Family(
        resolve(f"simvlm_jax.{_MODEL}:OpenCoCa"),
        ("open_clip_multimodal",),
        _plan,
        lambda source, model: names(model),
        {"open_clip": _written},
        {"open_clip": Reference(functools.partial(open_clip.load, kind="CoCa"), _rows, _theirs, _ours)},
    )
}
