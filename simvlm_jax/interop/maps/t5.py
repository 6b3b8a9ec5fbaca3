"""T5, of both versions, as transformers writes it."""

from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import Family, Options, Plan, Written, field, of_record, whole
from simvlm_jax.interop.parts import activation_named, activation_of, compute
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_texts, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import TRANSPOSED, heads_in, heads_out
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL, _LENGTH = "models.t5", 512
_GATES = {"gated-gelu": "gelu_new", "gated-silu": "silu", "gated-relu": "relu"}


def _plan(source: Source, options: Options) -> Plan:
    c = source.config
    kind = field(c, "feed_forward_proj", default="relu")
    gated = kind in _GATES
    if kind.startswith("gated-") and not gated:
        raise BadFile(f"feed_forward_proj {kind!r} is not known; gates that are: {', '.join(_GATES)}")
    width, heads, head = whole(c, "d_model"), whole(c, "num_heads"), whole(c, "d_kv")
    shape = dict(width=width, heads=heads, mlp=whole(c, "d_ff"), head_width=0 if head * heads == width else head)
    depths = whole(c, "num_layers"), whole(c, "num_decoder_layers", "num_layers")
    encoder, decoder = (of_record("nn.sizes", "Size", depth=n, **shape) for n in depths)
    style = of_record(
        "nn.sizes",
        "Style",
        activation=activation_of({"act": _GATES.get(kind, kind)}, "act"),
        epsilon=float(c.get("layer_norm_epsilon", 1e-6)),
        norm="rms",
        bias=of_record("nn.sizes", "Bias", query=False, value=False, out=False, mlp=False, norm=False),
        gated=gated,
        scaled=False,
    )
    tensors = source.tensors  # newest configs say that all are tied, whatever the arrays say
    tied = c.get("tie_word_embeddings", True) is not False
    if "lm_head.weight" in tensors:
        tied = "shared.weight" in tensors and np.array_equal(tensors["lm_head.weight"], tensors["shared.weight"])
    size = of_record(
        _MODEL,
        "Sizes",
        encoder=encoder,
        decoder=decoder,
        style=style,
        buckets=whole(c, "relative_attention_num_buckets", default=32),
        furthest=whole(c, "relative_attention_max_distance", default=128),
        tied=tied,
        scaled=bool(c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True))),
    )
    found = tokenizer_of(source, options.tokenizer)
    found = found._replace(
        roles=found.roles._replace(bos=whole(c, "decoder_start_token_id", "pad_token_id", default=0, least=0))
    )
    tokenizer = found.tokenizer(options.length or _LENGTH, "", whole(c, "vocab_size"))
    return Plan(of_record(_MODEL, "T5", size=size, compute=compute()), tokenizer)


def names(model: Any) -> Table:
    """transformers' names. The relative positions of all layers stand in the first."""
    H = model.sizes.encoder.heads

    def attention(theirs: str, ours: str) -> tuple[Row, ...]:
        to = [Row(f"{theirs}.{k[0]}.weight", f"{ours}/{k}", heads_out(H)) for k in ("query", "key", "value")]
        return (*to, Row(f"{theirs}.o.weight", f"{ours}/out", heads_in(H)))

    def mlp(layer: int) -> tuple[Row, ...]:
        start = f"layer.{layer}.DenseReluDense."
        gates = (("wi_0", "gate"), ("wi_1", "up")) if model.sizes.style.gated else (("wi", "up"),)
        maps = [Row(f"{start}{k}.weight", f"mlp/{v}", TRANSPOSED) for k, v in (*gates, ("wo", "down"))]
        return (*maps, Row(f"layer.{layer}.layer_norm.weight", "norm_mlp/scale"))

    itself = (
        *attention("layer.0.SelfAttention", "attention"),
        Row("layer.0.layer_norm.weight", "norm_attention/scale"),
    )
    look = (
        *attention("layer.1.EncDecAttention", "cross_attention"),
        Row("layer.1.layer_norm.weight", "norm_cross/scale"),
    )
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = (
        Row("shared.weight", "embedding"),
        Row(f"encoder.{bias}", "encoder_relative/table"),
        *under("encoder.block.*.", "encoder/layer_*/", (*itself, *mlp(1))),
        Row("encoder.final_layer_norm.weight", "encoder_norm/scale"),
        Row(f"decoder.{bias}", "decoder_relative/table"),
        *under("decoder.block.*.", "decoder/layer_*/", (*itself, *look, *mlp(2))),
        Row("decoder.final_layer_norm.weight", "decoder_norm/scale"),
        Row("lm_head.weight", "softmax"),
    )
    same = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}
    same |= {"lm_head.weight": "shared.weight"} if model.sizes.tied else {}
    dropped = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "a bias that nothing reads"}
    return Table(rows, dropped, same)


def _written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, v = model.sizes, tokenizer.vocabulary
    act = activation_named(s.style.activation)
    gates = {name: gate for gate, name in _GATES.items()}
    config = dict(
        architectures=["T5ForConditionalGeneration"],
        model_type="t5",
        vocab_size=v.size,
        d_model=s.encoder.width,
        d_kv=s.encoder.key_width,
        d_ff=s.encoder.mlp,
        num_layers=s.encoder.depth,
        num_decoder_layers=s.decoder.depth,
        num_heads=s.encoder.heads,
        feed_forward_proj=gates[act] if s.style.gated else act,
        relative_attention_num_buckets=s.buckets,
        relative_attention_max_distance=s.furthest,
        layer_norm_epsilon=s.style.epsilon,
        tie_word_embeddings=s.scaled,  # by which transformers tells whether states are scaled
        scale_decoder_outputs=s.scaled,
        decoder_start_token_id=v.bos,
        pad_token_id=v.pad,
        eos_token_id=v.eos,
        torch_dtype="float32",
    )
    return Written(names(model), {"config.json": config, **special_files(tokenizer)})


# ---- the reference -------------------------------------------------------------------------------------------------


def _rows(model: Any) -> Arrays:
    rows = random_texts(model.vocabulary)
    prefix = np.asarray([5, 3, 0, 1], np.int32)
    rows = {**rows, "prefix_length": prefix}
    tokens, given, inputs, segment = (np.asarray(x) for x in model.lay_out(rows))
    return {**rows, "tokens": tokens, "given": given, "inputs": inputs, "segment": segment}


def shifted(rows: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The decoder's inputs from slot 0 on, and where they are: theirs do not begin in the middle."""
    inputs, there = np.zeros_like(rows["inputs"]), np.zeros_like(rows["segment"], bool)
    for row, own, seen, segment in zip(inputs, rows["inputs"], there, rows["segment"], strict=True):
        kept = own[segment >= 0]
        row[: len(kept)], seen[: len(kept)] = kept, True
    return inputs, there


def _theirs(module: Any, rows: Arrays) -> Arrays:
    inputs, there = shifted(rows)
    out = module(
        input_ids=tensor(rows["tokens"]),
        attention_mask=tensor(rows["given"]).long(),
        decoder_input_ids=tensor(inputs),
        output_hidden_states=True,
    )
    return {
        "encoder_states": out.encoder_last_hidden_state.numpy()[rows["given"]],
        "decoder_states": out.decoder_hidden_states[-1].numpy()[there],
        "logits": out.logits.numpy()[there],
    }


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    import jax

    run = jax.jit(
        lambda params: model.apply(params, "inspected", *(rows[k] for k in ("tokens", "given", "inputs", "segment")))
    )
    context, states, logits = (np.asarray(x) for x in run(params))
    there = rows["segment"] >= 0
    return {"encoder_states": context[rows["given"]], "decoder_states": states[there], "logits": logits[there]}


FAMILIES = {
    "t5": Family(
        resolve(f"simvlm_jax.{_MODEL}:T5"),
        ("t5", "mt5"),
        _plan,
        lambda source, model: names(model),
        {"hf": _written},
        {"hf": Reference(lambda f: pretrained("T5ForConditionalGeneration", f), _rows, _theirs, _ours)},
    )
}
