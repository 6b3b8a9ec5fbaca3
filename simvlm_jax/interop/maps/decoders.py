"""Decoders of text, as transformers and llama.cpp write them: GPT-2, GPT-J, OPT, and those in the shape of LLaMA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import Family, Options, Plan, Written, field, of_record, whole
from simvlm_jax.interop.parts import activation_named, activation_of, compute, linear, norm
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_texts, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import gguf_tokenizer, special_files, tokenizer_of
from simvlm_jax.interop.transforms import (
    SAME,
    TRANSPOSED,
    Transform,
    heads_bias,
    heads_in,
    heads_out,
    packed,
)
from simvlm_jax.text.tokenizer import Tokenizer

_DECODERS, _SIZES = "families.decoders", "nn.sizes"
_BUFFERS = {
    "*.rotary_emb.inv_freq": "a constant",
    "model.layers.*.self_attn.rotary_emb.inv_freq": "a constant",
    "transformer.h.*.attn.bias": "the mask of causal attention",
    "transformer.h.*.attn.masked_bias": "the mask of causal attention",
    "transformer.h.*.attn.embed_positions": "a constant",
}


class Shape(NamedTuple):
    """What a family reads from a config.json: the stack, how its blocks are built, and what stands around it."""

    stack: dict[str, Any]
    style: dict[str, Any]
    around: dict[str, Any]
    length: int


def _plan(shape: Callable[[dict[str, Any]], Shape], source: Source, options: Options) -> Plan:
    if source.layout == "gguf":
        made, found = _gguf_shape(source.config), gguf_tokenizer(source.config)
        rows = source.tensors.shape("token_embd.weight")[0]
        made.around["tied"] = "output.weight" not in source.tensors
    else:
        made, found = shape(source.config), tokenizer_of(source, options.tokenizer)
        rows = whole(source.config, "vocab_size")
    around = {**made.around, "begins": found.begins}
    room = around.get("positions", 0) - around.get("unread", 0) if around.get("positions") else made.length
    length = options.length or min(room - found.begins, 2**17)
    size = of_record(
        _DECODERS,
        "Sizes",
        stack=of_record(_SIZES, "Size", **made.stack),
        style=of_record(_SIZES, "Style", **made.style),
        **around,
    )
    model = of_record(_DECODERS, "Decoder", size=size, compute=compute())
    return Plan(model, found.tokenizer(length, "exact", rows))


# ---- what a config.json says ---------------------------------------------------------------------------------------


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


def _gpt2(c: dict[str, Any]) -> Shape:
    width = whole(c, "n_embd")
    stack = dict(width=width, depth=whole(c, "n_layer"), heads=whole(c, "n_head"))
    stack["mlp"] = whole(c, "n_inner", default=4 * width)
    if c.get("scale_attn_by_inverse_layer_idx") or not c.get("scale_attn_weights", True):
        raise BadFile("this GPT-2 scales its attention by the layer, or not at all, which is not known here")
    activation = activation_of(c, "activation_function", "gelu_new")
    style = dict(activation=activation, epsilon=float(c.get("layer_norm_epsilon", 1e-5)), key_bias=True)
    return Shape(stack, style, dict(positions=whole(c, "n_positions"), tied=c.get("tie_word_embeddings", True)), 0)


def _gptj(c: dict[str, Any]) -> Shape:
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


def _opt(c: dict[str, Any]) -> Shape:
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


def _llama(c: dict[str, Any], attention_bias: bool = False) -> Shape:
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


def _qwen2(c: dict[str, Any]) -> Shape:
    return _llama({**c, "use_sliding_window": c.get("use_sliding_window", False)}, attention_bias=True)


def _gguf_shape(m: dict[str, Any]) -> Shape:
    kind = m.get("general.architecture")
    get = lambda name, default=...: field(m, f"{kind}.{name}", default=default)  # noqa: E731
    heads, width = get("attention.head_count"), get("embedding_length")
    stack = dict(width=width, depth=get("block_count"), heads=heads, mlp=get("feed_forward_length"))
    groups, head = get("attention.head_count_kv", heads), get("attention.key_length", width // heads)
    stack |= dict(kv_heads=0 if groups == heads else groups, head_width=0 if head * heads == width else head)
    if m.get(f"{kind}.rope.scaling.type", "none") not in ("none", "") or m.get(f"{kind}.expert_count"):
        raise BadFile(f"this {kind} has scaled rotary frequencies or experts, which are not read from GGUF here")
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


# ---- what arrays are called ----------------------------------------------------------------------------------------


def _attention(model: Any, q: str, k: str, v: str, out: str) -> tuple[Row, ...]:
    H, G = model.sizes.stack.heads, model.sizes.stack.key_heads
    return (
        *linear(q, "attention/query", heads_out(H), heads_bias(H)),
        *linear(k, "attention/key", heads_out(G), heads_bias(G)),
        *linear(v, "attention/value", heads_out(G), heads_bias(G)),
        *linear(out, "attention/out", heads_in(H)),
    )


def _tied(model: Any, head: str, embedding: str) -> dict[str, str]:
    return {head: embedding} if model.sizes.tied else {}


def _gpt2_table(model: Any) -> Table:
    """GPT-2's maps stand as [in,out], those of queries, keys and values in one."""
    H = model.sizes.stack.heads
    to_heads = Transform(lambda x: x.reshape(x.shape[0], H, -1), lambda x: x.reshape(x.shape[0], -1))
    from_heads = Transform(lambda x: x.reshape(H, -1, x.shape[-1]), lambda x: x.reshape(-1, x.shape[-1]))
    three = tuple(f"attention/{k}" for k in ("query", "key", "value"))
    block = (
        *norm("ln_1", "norm_attention"),
        Row("attn.c_attn.weight", three, packed(*[to_heads] * 3, axis=1)),
        Row("attn.c_attn.bias", tuple(f"{k}_bias" for k in three), packed(*[heads_bias(H)] * 3)),
        *linear("attn.c_proj", "attention/out", from_heads),
        *norm("ln_2", "norm_mlp"),
        *linear("mlp.c_fc", "mlp/up", SAME),
        *linear("mlp.c_proj", "mlp/down", SAME),
    )
    rows = (
        Row("transformer.wte.weight", "embedding"),
        Row("transformer.wpe.weight", "position/table"),
        *under("transformer.h.*.", "decoder/layer_*/", block),
        *norm("transformer.ln_f", "norm"),
        Row("lm_head.weight", "softmax"),
    )
    return Table(rows, _BUFFERS, _tied(model, "lm_head.weight", "transformer.wte.weight"), ("transformer.",))


def _gptj_table(model: Any) -> Table:
    names = (f"attn.{k}_proj" for k in ("q", "k", "v", "out"))
    block = (
        *norm("ln_1", "norm_attention"),
        *_attention(model, *names),
        *linear("mlp.fc_in", "mlp/up"),
        *linear("mlp.fc_out", "mlp/down"),
    )
    rows = (
        Row("transformer.wte.weight", "embedding"),
        *under("transformer.h.*.", "decoder/layer_*/", block),
        *norm("transformer.ln_f", "norm"),
        Row("lm_head.weight", "softmax"),
        Row("lm_head.bias", "softmax_bias"),
    )
    return Table(rows, _BUFFERS, _tied(model, "lm_head.weight", "transformer.wte.weight"), ("transformer.",))


def _opt_table(model: Any) -> Table:
    start = "model.decoder."
    block = (
        *norm("self_attn_layer_norm", "norm_attention"),
        *_attention(model, *(f"self_attn.{k}_proj" for k in ("q", "k", "v", "out"))),
        *norm("final_layer_norm", "norm_mlp"),
        *linear("fc1", "mlp/up"),
        *linear("fc2", "mlp/down"),
    )
    rows = (
        Row(f"{start}embed_tokens.weight", "embedding"),
        Row(f"{start}embed_positions.weight", "position/table"),
        Row(f"{start}project_in.weight", "project_in/kernel", TRANSPOSED),
        Row(f"{start}project_out.weight", "project_out/kernel", TRANSPOSED),
        *under(f"{start}layers.*.", "decoder/layer_*/", block),
        *norm(f"{start}final_layer_norm", "norm"),
        Row("lm_head.weight", "softmax"),
    )
    return Table(rows, {}, _tied(model, "lm_head.weight", f"{start}embed_tokens.weight"), ("model.", "model.decoder."))


def _llama_table(model: Any) -> Table:
    block = (
        *norm("input_layernorm", "norm_attention"),
        *_attention(model, *(f"self_attn.{k}_proj" for k in "qkvo")),
        *norm("post_attention_layernorm", "norm_mlp"),
        *linear("mlp.gate_proj", "mlp/gate"),
        *linear("mlp.up_proj", "mlp/up"),
        *linear("mlp.down_proj", "mlp/down"),
    )
    rows = (
        Row("model.embed_tokens.weight", "embedding"),
        *under("model.layers.*.", "decoder/layer_*/", block),
        *norm("model.norm", "norm"),
        Row("lm_head.weight", "softmax"),
    )
    return Table(rows, _BUFFERS, _tied(model, "lm_head.weight", "model.embed_tokens.weight"), ("model.",))


def _gguf_table(model: Any, kind: str) -> Table:
    """llama.cpp pairs components 2i and 2i+1 of a head in "llama", and i and i + K/2 in others."""
    H, G = model.sizes.stack.heads, model.sizes.stack.key_heads
    turned = _interleaved if kind == "llama" else heads_out
    block = (
        *norm("attn_norm", "norm_attention"),
        *linear("attn_q", "attention/query", turned(H), heads_bias(H)),
        *linear("attn_k", "attention/key", turned(G), heads_bias(G)),
        *linear("attn_v", "attention/value", heads_out(G), heads_bias(G)),
        *linear("attn_output", "attention/out", heads_in(H)),
        *norm("ffn_norm", "norm_mlp"),
        *linear("ffn_gate", "mlp/gate"),
        *linear("ffn_up", "mlp/up"),
        *linear("ffn_down", "mlp/down"),
    )
    rows = (
        Row("token_embd.weight", "embedding"),
        *under("blk.*.", "decoder/layer_*/", block),
        *norm("output_norm", "norm"),
        Row("output.weight", "softmax"),
    )
    return Table(rows, {"rope_freqs.weight": "a constant"})


def _interleaved(heads: int) -> Transform:
    """`heads_out` of a map whose outputs stand in pairs of components that turn together."""
    plain = heads_out(heads)

    def take(x: np.ndarray) -> np.ndarray:
        D = x.shape[1]
        return np.asarray(plain.take(x.reshape(heads, -1, 2, D).swapaxes(1, 2).reshape(-1, D)))

    def give(x: np.ndarray) -> np.ndarray:
        y = plain.give(x)
        return y.reshape(heads, 2, -1, y.shape[1]).swapaxes(1, 2).reshape(-1, y.shape[1])

    return Transform(take, give)


# ---- config.json of a model ----------------------------------------------------------------------------------------


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


def _write_gpt2(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
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


def _write_gptj(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
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


def _write_opt(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
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


def _write_llama(kind: str, architecture: str, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
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


# ---- the reference -------------------------------------------------------------------------------------------------


def _rows(model: Any) -> Arrays:
    return random_texts(model.vocabulary)


def _theirs(module: Any, rows: Arrays) -> Arrays:
    there = rows["text_mask"]
    out = module(input_ids=tensor(rows["text"]), attention_mask=tensor(there).long(), output_hidden_states=True)
    return {"states": out.hidden_states[-1].numpy()[there], "logits": out.logits.numpy()[there]}


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    import jax

    text, there = rows["text"], rows["text_mask"]
    place = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)

    @jax.jit
    def run(params):
        return model.apply(params, "inspected", text, place, np.where(there, 0, -1))

    states, logits = run(params)
    return {"states": np.asarray(states)[there], "logits": np.asarray(logits)[there]}


REFERENCE = Reference(lambda folder: pretrained("AutoModelForCausalLM", folder), _rows, _theirs, _ours)


def _family(
    kind: str,
    shape: Callable[[dict[str, Any]], Shape],
    table: Callable[[Any], Table],
    write: Callable[[Any, Tokenizer], dict[str, Any]],
) -> Family:
    def named(source: Source, model: Any) -> Table:
        return _gguf_table(model, source.kind) if source.layout == "gguf" else table(model)

    def written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
        assert tokenizer is not None
        return Written(
            table(model), {"config.json": write(model, tokenizer), **special_files(tokenizer, model.sizes.begins)}
        )

    return Family(
        resolve(f"simvlm_jax.{_DECODERS}:Decoder"),
        (kind,),
        lambda source, options: _plan(shape, source, options),
        named,
        {"hf": written},
        {"hf": REFERENCE},
    )


def _in_the_shape_of_llama(kind: str, architecture: str, shape: Callable[[dict[str, Any]], Shape] = _llama) -> Family:
    return _family(kind, shape, _llama_table, lambda m, t: _write_llama(kind, architecture, m, t))


_LLAMA = _in_the_shape_of_llama("llama", "LlamaForCausalLM")
FAMILIES = {
    "gpt2": _family("gpt2", _gpt2, _gpt2_table, _write_gpt2),
    "gptj": _family("gptj", _gptj, _gptj_table, _write_gptj),
    "llama": _LLAMA,
    "mistral": _in_the_shape_of_llama("mistral", "MistralForCausalLM"),
    "opt": _family("opt", _opt, _opt_table, _write_opt),
    "qwen2": _in_the_shape_of_llama("qwen2", "Qwen2ForCausalLM", _qwen2),
    "smollm2": _LLAMA,
}
