"""The config.json of decoders of text, and GGUF's counterpart, as the parts of a model, and a model as its config.json."""

from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import field, of_record, whole
from simvlm_jax.interop.parts import activation_named, activation_of
from simvlm_jax.text.tokenizer import Tokenizer

_SIZES = "nn.sizes"


class Shape(NamedTuple):
    """What a family reads from a config.json: the stack, how its blocks are built, and what stands around it."""

    stack: dict[str, Any]
    style: dict[str, Any]
    around: dict[str, Any]
    length: int


# ---- what is read ---------------------------------------------------------------------------------------------------


def _bias(**which: bool) -> Any:
    return of_record(_SIZES, "Bias", **which)


def _rotary(config: dict[str, Any], **fields: Any) -> Any:
    """The rotary embedding of a config.json, old (rope_theta, rope_scaling) or new (rope_parameters)."""
    said = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    base = float(said.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "linear":
        fields["longer"] = of_record(_SIZES, "Longer", factor=float(field(said, "factor")))
    elif kind == "llama3":
        fields["longer"] = of_record(
            _SIZES,
            "Longer",
            factor=float(field(said, "factor")),
            original=whole(said, "original_max_position_embeddings"),
            slow=float(field(said, "low_freq_factor")),
            fast=float(field(said, "high_freq_factor")),
        )
    elif kind != "default":
        raise BadFile(
            f"rotary embedding of the kind {kind!r} is not known; those that are are default, linear and llama3"
        )
    return of_record(_SIZES, "Rotary", base=base, **fields)


def gpt2(c: dict[str, Any]) -> Shape:
    """The parts of a GPT-2 (Radford et al. 2019), of its config.json; learned positions say the length."""
    width = whole(c, "n_embd")
    stack = dict(width=width, depth=whole(c, "n_layer"), heads=whole(c, "n_head"))
    stack["mlp"] = whole(c, "n_inner", default=4 * width)
    if c.get("scale_attn_by_inverse_layer_idx") or not c.get("scale_attn_weights", True):
        raise BadFile("this GPT-2 scales its attention by the layer, or not at all, which is not known here")
    activation = activation_of(c, "activation_function", "gelu_new")
    style = dict(activation=activation, epsilon=float(c.get("layer_norm_epsilon", 1e-5)), key_bias=True)
    return Shape(stack, style, dict(positions=whole(c, "n_positions"), tied=c.get("tie_word_embeddings", True)), 0)


def gptj(c: dict[str, Any]) -> Shape:
    """The parts of a GPT-J, of its config.json: attention and MLP side by side, a part of each head rotated."""
    width, heads = whole(c, "n_embd"), whole(c, "n_head")
    stack = dict(width=width, depth=whole(c, "n_layer"), heads=heads, mlp=whole(c, "n_inner", default=4 * width))
    turned = whole(c, "rotary_dim", default=width // heads)
    style = dict(
        activation=activation_of(c, "activation_function", "gelu_new"),
        epsilon=float(c.get("layer_norm_epsilon", 1e-5)),
        bias=_bias(query=False, value=False, out=False),
        block="parallel",
        rotary=of_record(_SIZES, "Rotary", share=turned / (width // heads), pairing="interleaved"),
    )
    tied = bool(c.get("tie_word_embeddings", False))
    return Shape(stack, style, dict(tied=tied, head_bias=True), whole(c, "n_positions"))


def opt(c: dict[str, Any]) -> Shape:
    """The parts of an OPT (Zhang et al. 2022), of its config.json: two positions that no text reads, norms before or after."""
    width, before = whole(c, "hidden_size"), c.get("do_layer_norm_before", True)
    stack = dict(
        width=width,
        depth=whole(c, "num_hidden_layers"),
        heads=whole(c, "num_attention_heads"),
        mlp=whole(c, "ffn_dim"),
    )
    if not c.get("layer_norm_elementwise_affine", True):
        raise BadFile("this OPT has norms without a scale, which is not known here")
    bias = bool(c.get("enable_bias", True))
    style = dict(
        activation=activation_of(c, "activation_function", "relu"),
        epsilon=1e-5,
        key_bias=bias,
        bias=_bias(query=bias, value=bias, out=bias, mlp=bias),
        block="pre" if before else "post",
    )
    table = whole(c, "word_embed_proj_dim", default=width)
    around = dict(
        positions=whole(c, "max_position_embeddings") + 2,
        unread=2,
        tied=c.get("tie_word_embeddings", True),
        embed_width=0 if table == width else table,
        last_norm=bool(before and not c.get("_remove_final_layer_norm", False)),
    )
    return Shape(stack, style, around, 0)


def llama(c: dict[str, Any], attention_bias: bool = False) -> Shape:
    """The parts of a decoder in the shape of LLaMA, of its config.json. attention_bias: of queries, keys and values."""
    width, heads = whole(c, "hidden_size"), whole(c, "num_attention_heads")
    stack = dict(width=width, depth=whole(c, "num_hidden_layers"), heads=heads, mlp=whole(c, "intermediate_size"))
    groups, head = whole(c, "num_key_value_heads", default=heads), whole(c, "head_dim", default=width // heads)
    stack |= dict(kv_heads=0 if groups == heads else groups, head_width=0 if head * heads == width else head)
    said, up = bool(c.get("attention_bias", False)), bool(c.get("mlp_bias", False))
    style = dict(
        activation=activation_of(c, "hidden_act"),
        epsilon=float(field(c, "rms_norm_eps", default=1e-6)),
        norm="rms",
        gated=True,
        key_bias=said or attention_bias,
        bias=_bias(query=said or attention_bias, value=said or attention_bias, out=said, mlp=up, norm=False),
        rotary=_rotary(c),
        window=_window(c),
    )
    length = whole(c, "max_position_embeddings")
    return Shape(stack, style, dict(tied=bool(c.get("tie_word_embeddings", False))), length)


def _window(c: dict[str, Any]) -> int:
    """The sliding window of all layers, 0 for none."""
    kinds = set(c.get("layer_types") or ())
    if not c.get("use_sliding_window", True) or not c.get("sliding_window") or kinds == {"full_attention"}:
        return 0
    mixed = kinds - {"sliding_attention"} if kinds else c.get("max_window_layers", 0) > 0
    if mixed:
        raise BadFile("some layers of this model have a sliding window and some have none, which is not known here")
    return whole(c, "sliding_window")


def qwen2(c: dict[str, Any]) -> Shape:
    """The parts of a Qwen2, of its config.json, whose window counts only where use_sliding_window says so."""
    return llama({**c, "use_sliding_window": c.get("use_sliding_window", False)}, attention_bias=True)


def gguf(m: dict[str, Any]) -> Shape:
    """The parts of a decoder in the shape of LLaMA, of the metadata of a GGUF."""
    kind = m.get("general.architecture")
    get = lambda name, default=...: field(m, f"{kind}.{name}", default=default)  # noqa: E731
    heads, width = get("attention.head_count"), get("embedding_length")
    stack = dict(width=width, depth=get("block_count"), heads=heads, mlp=get("feed_forward_length"))
    groups, head = get("attention.head_count_kv", heads), get("attention.key_length", width // heads)
    stack |= dict(kv_heads=0 if groups == heads else groups, head_width=0 if head * heads == width else head)
    if m.get(f"{kind}.rope.scaling.type", "none") not in ("none", "") or m.get(f"{kind}.expert_count"):
        raise BadFile(f"this {kind} has scaled rotary frequencies or experts, which are not read from GGUF here")
    if get("rope.scale_linear", 1.0) != 1.0 or get("rope.dimension_count", head) != head:
        raise BadFile(f"this {kind} rotates a part of each head, or at scaled places, which is not read from GGUF here")
    biased = kind == "qwen2"
    style = dict(
        activation="silu",
        epsilon=float(np.float32(get("attention.layer_norm_rms_epsilon"))),
        norm="rms",
        gated=True,
        key_bias=biased,
        bias=_bias(query=biased, value=biased, out=False, mlp=False, norm=False),
        rotary=of_record(_SIZES, "Rotary", base=float(get("rope.freq_base", 10_000.0))),
        window=get("attention.sliding_window", 0),
    )
    return Shape(stack, style, {}, get("context_length"))


# ---- what is written ------------------------------------------------------------------------------------------------


def _common(tokenizer: Tokenizer, kind: str, architecture: str) -> dict[str, Any]:
    v = tokenizer.vocabulary
    return dict(
        architectures=[architecture],
        model_type=kind,
        vocab_size=v.size,
        bos_token_id=v.bos,
        eos_token_id=v.eos,
        pad_token_id=v.pad,
        torch_dtype="float32",
    )


def write_gpt2(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of a GPT-2."""
    s, z = model.sizes.style, model.sizes.stack
    return _common(tokenizer, "gpt2", "GPT2LMHeadModel") | dict(
        n_embd=z.width,
        n_layer=z.depth,
        n_head=z.heads,
        n_inner=z.mlp,
        n_positions=model.sizes.positions,
        activation_function=activation_named(s.activation),
        layer_norm_epsilon=s.epsilon,
        tie_word_embeddings=model.sizes.tied,
    )


def write_gptj(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of a GPT-J."""
    s, z = model.sizes.style, model.sizes.stack
    return _common(tokenizer, "gptj", "GPTJForCausalLM") | dict(
        n_embd=z.width,
        n_layer=z.depth,
        n_head=z.heads,
        n_inner=z.mlp,
        n_positions=tokenizer.vocabulary.length + model.sizes.begins,
        rotary_dim=s.rotary.width(z.key_width),
        activation_function=activation_named(s.activation),
        layer_norm_epsilon=s.epsilon,
        tie_word_embeddings=model.sizes.tied,
    )


def write_opt(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of an OPT."""
    s, z = model.sizes.style, model.sizes.stack
    return _common(tokenizer, "opt", "OPTForCausalLM") | dict(
        hidden_size=z.width,
        num_hidden_layers=z.depth,
        num_attention_heads=z.heads,
        ffn_dim=z.mlp,
        max_position_embeddings=model.sizes.positions - 2,
        word_embed_proj_dim=model.sizes.embed_width or z.width,
        activation_function=activation_named(s.activation),
        do_layer_norm_before=s.block == "pre",
        _remove_final_layer_norm=s.block == "pre" and not model.sizes.last_norm,
        enable_bias=s.bias.mlp,
        tie_word_embeddings=model.sizes.tied,
    )


def write_llama(kind: str, architecture: str, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of a LLaMA, Qwen2 or Mistral, with rotary fields for transformers both before and from version 5."""
    s, z = model.sizes.style, model.sizes.stack
    longer = s.rotary.longer
    rope: dict[str, Any] = dict(rope_type="default", rope_theta=s.rotary.base)
    if longer is not None:
        rope |= dict(rope_type="llama3" if longer.original else "linear", factor=longer.factor)
        if longer.original:
            rope |= dict(
                original_max_position_embeddings=longer.original,
                low_freq_factor=longer.slow,
                high_freq_factor=longer.fast,
            )
    more: dict[str, Any] = dict(attention_bias=s.bias.out, mlp_bias=s.bias.mlp) if kind == "llama" else {}
    if kind == "mistral":
        more = dict(sliding_window=s.window or None)
    return _common(tokenizer, kind, architecture) | dict(
        hidden_size=z.width,
        intermediate_size=z.mlp,
        num_hidden_layers=z.depth,
        num_attention_heads=z.heads,
        num_key_value_heads=z.key_heads,
        head_dim=z.key_width,
        hidden_act=activation_named(s.activation),
        rms_norm_eps=s.epsilon,
        max_position_embeddings=tokenizer.vocabulary.length + model.sizes.begins,
        rope_theta=s.rotary.base,
        rope_parameters=rope,
        rope_scaling=None if longer is None else rope,
        tie_word_embeddings=model.sizes.tied,
        **more,
    )
