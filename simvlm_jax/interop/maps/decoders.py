"""Decoders of text, as transformers and llama.cpp write them: GPT-2, GPT-J, OPT, and those in the shape of LLaMA."""

from collections.abc import Callable
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.interop import decoder_configs as configs
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record, whole
from simvlm_jax.interop.parts import compute, linear, norm
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
_FREQUENCIES = "rope_freqs.weight"
_BUFFERS = {
    "model.rotary_emb.inv_freq": "a constant",
    "model.layers.*.self_attn.rotary_emb.inv_freq": "a constant",
    "transformer.h.*.attn.bias": "the mask of causal attention",
    "transformer.h.*.attn.masked_bias": "the mask of causal attention",
    "transformer.h.*.attn.embed_positions": "a constant",
}


def _plan(shape: Callable[[dict[str, Any]], configs.Shape], source: Source, options: Options) -> Plan:
    if source.layout == "gguf":
        made = configs.gguf(source.config)
        found = tokenizer_of(source, options.tokenizer) if options.tokenizer else gguf_tokenizer(source.config)
        if not (np.asarray(source.tensors.get(_FREQUENCIES, 1.0)) == 1).all():
            raise BadFile(
                f"{source.file} scales its rotary frequencies ({_FREQUENCIES}), which is not read from GGUF here"
            )
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
    return Table(rows, {_FREQUENCIES: "frequencies that are scaled by 1"})


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
    shape: Callable[[dict[str, Any]], configs.Shape],
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


def _in_the_shape_of_llama(
    kind: str, architecture: str, shape: Callable[[dict[str, Any]], configs.Shape] = configs.llama
) -> Family:
    return _family(kind, shape, _llama_table, lambda m, t: configs.write_llama(kind, architecture, m, t))


_LLAMA = _in_the_shape_of_llama("llama", "LlamaForCausalLM")
FAMILIES = {
    "gpt2": _family("gpt2", configs.gpt2, _gpt2_table, configs.write_gpt2),
    "gptj": _family("gptj", configs.gptj, _gptj_table, configs.write_gptj),
    "llama": _LLAMA,
    "mistral": _in_the_shape_of_llama("mistral", "MistralForCausalLM"),
    "opt": _family("opt", configs.opt, _opt_table, configs.write_opt),
    "qwen2": _in_the_shape_of_llama("qwen2", "Qwen2ForCausalLM", configs.qwen2),
    "smollm2": _LLAMA,
}
