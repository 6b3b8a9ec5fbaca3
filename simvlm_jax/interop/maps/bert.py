"""BERT and sentence encoders in its shape, as transformers and sentence-transformers write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile, read_json
from simvlm_jax.interop.family import Family, Options, Plan, Written, field, of_record, whole
from simvlm_jax.interop.parts import (
    activation_named,
    activation_of,
    compute,
    linear,
    norm,
    separate_attention,
    stack_of,
)
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_texts, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import TRANSPOSED
from simvlm_jax.text.json_pieces import JsonPieces
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL, _POOLING, _LENGTH = "models.bert", "1_Pooling/config.json", "sentence_bert_config.json"
_HEAD, _POOLER = "cls.predictions.transform.dense.weight", "pooler.dense.weight"


def _plan(pool: str, source: Source, options: Options) -> Plan:
    c, names = source.config, [name.removeprefix("bert.") for name in source.tensors]
    if field(c, "position_embedding_type", default="absolute") != "absolute" or c.get("is_decoder"):
        raise BadFile("this BERT has relative positions or is a decoder, which is not known here")
    head, pooler = _HEAD in names, _POOLER in names
    if (source.folder / _POOLING).is_file():
        said = read_json(source.folder / _POOLING)
        modes = [k for k, v in said.items() if k.startswith("pooling_mode_") and v is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(modes) != 1 or modes[0] not in known:
            raise BadFile(
                f"{source.folder / _POOLING} pools by {', '.join(modes) or 'nothing'}; known are {', '.join(known)}"
            )
        pool = known[modes[0]]
    if (source.folder / "modules.json").is_file():
        kinds = [str(m.get("type", "")).rpartition(".")[2] for m in read_json(source.folder / "modules.json")]
        if strange := [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]:
            raise BadFile(f"this sentence encoder has a module {strange[0]} after its pooling, which is not known here")
    pool = pool or ("pooler" if pooler and not head else "cls")
    found = tokenizer_of(source, options.tokenizer)
    positions = whole(c, "max_position_embeddings")
    length = options.length or positions - 1
    said = read_json(source.folder / _LENGTH) if (source.folder / _LENGTH).is_file() else {}
    if not options.length and said:
        length = min(length, whole(said, "max_seq_length") - 1)
    tokenizer = found.tokenizer(length, "lower" if said.get("do_lower_case") else "", whole(c, "vocab_size"))
    mask = JsonPieces(tokenizer.model).id_of("[MASK]") if tokenizer.is_json else None
    style = of_record(
        "nn.sizes",
        "Style",
        activation=activation_of(c, "hidden_act"),
        epsilon=float(field(c, "layer_norm_eps", default=1e-12)),
        key_bias=True,
        block="post",
    )
    size = of_record(
        _MODEL,
        "Sizes",
        stack=of_record("nn.sizes", "Size", **stack_of(c)),
        style=style,
        positions=positions,
        types=whole(c, "type_vocab_size"),
        pool=pool,
        pooler=pooler,
        head=head,
        mask=mask or 0,
    )
    return Plan(of_record(_MODEL, "BERT", size=size, compute=compute()), tokenizer)


def _table(source: Source, model: Any) -> Table:
    return names(model)


def names(model: Any) -> Table:
    """What arrays are called, with "bert." before those of the encoder."""
    H, three = model.sizes.stack.heads, ("query", "key", "value")
    block = (
        *separate_attention([*(f"attention.self.{k}" for k in three), "attention.output.dense"], "attention", H),
        *norm("attention.output.LayerNorm", "norm_attention"),
        *linear("intermediate.dense", "mlp/up"),
        *linear("output.dense", "mlp/down"),
        *norm("output.LayerNorm", "norm_mlp"),
    )
    encoder = (
        Row("embeddings.word_embeddings.weight", "embedding"),
        Row("embeddings.position_embeddings.weight", "position/table"),
        Row("embeddings.token_type_embeddings.weight", "type"),
        *norm("embeddings.LayerNorm", "embed_norm"),
        *under("encoder.layer.*.", "encoder/layer_*/", block),
        Row("pooler.dense.weight", "pooler/kernel", TRANSPOSED),
        Row("pooler.dense.bias", "pooler/bias"),
    )
    start = "bert." if model.sizes.head else ""
    rows = (
        *under(start, "", encoder),
        Row("cls.predictions.transform.dense.weight", "transform/kernel", TRANSPOSED),
        Row("cls.predictions.transform.dense.bias", "transform/bias"),
        *norm("cls.predictions.transform.LayerNorm", "transform_norm"),
        Row("cls.predictions.bias", "softmax_bias"),
    )
    dropped = {
        f"{start}embeddings.position_ids": "a constant",
        "cls.seq_relationship.weight": "the head of next sentence prediction, which is not trained here",
        "cls.seq_relationship.bias": "the head of next sentence prediction, which is not trained here",
    }
    same = {
        "cls.predictions.decoder.weight": f"{start}embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    return Table(rows, dropped, same, (start,) if start else ())


def _written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, v = model.sizes, tokenizer.vocabulary
    config = dict(
        architectures=["BertForMaskedLM" if s.head else "BertModel"],
        model_type="bert",
        vocab_size=v.size,
        hidden_size=s.stack.width,
        num_hidden_layers=s.stack.depth,
        num_attention_heads=s.stack.heads,
        intermediate_size=s.stack.mlp,
        hidden_act=activation_named(s.style.activation),
        layer_norm_eps=s.style.epsilon,
        max_position_embeddings=s.positions,
        type_vocab_size=s.types,
        pad_token_id=v.pad,
        torch_dtype="float32",
    )
    pooling = {f"pooling_mode_{k}": s.pool == p for k, p in (("cls_token", "cls"), ("mean_tokens", "mean"))}
    files = {"config.json": config, **special_files(tokenizer), _LENGTH: {"max_seq_length": v.length + 1}}
    files["tokenizer_config.json"] |= {"cls_token": files["tokenizer_config.json"].pop("bos_token")}
    files["tokenizer_config.json"] |= {"sep_token": files["tokenizer_config.json"].pop("eos_token")}
    if s.pool != "pooler":
        kinds = ["models.Transformer", "models.Pooling", "models.Normalize"]
        places = ("", "1_Pooling", "2_Normalize")
        files["modules.json"] = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, places, strict=True))
        ]
        files[_POOLING] = {"word_embedding_dimension": s.stack.width, **pooling}
    return Written(names(model), files)


# ---- the reference -------------------------------------------------------------------------------------------------


def _load(folder: Path) -> Any:
    head = "MaskedLM" in str(json.loads((folder / "config.json").read_text()).get("architectures"))
    return pretrained("BertForMaskedLM" if head else "BertModel", folder)


def _inputs(model: Any, rows: Arrays) -> tuple[np.ndarray, np.ndarray]:
    tokens, valid = model.lay_out(rows["text"], rows["text_mask"])
    return np.asarray(tokens), np.asarray(valid)


def _rows(model: Any) -> Arrays:
    rows = random_texts(model.vocabulary)
    tokens, valid = _inputs(model, rows)
    return {**rows, "tokens": tokens, "valid": valid}


def _theirs(module: Any, rows: Arrays) -> Arrays:
    there = rows["valid"]
    out = module(input_ids=tensor(rows["tokens"]), attention_mask=tensor(there).long(), output_hidden_states=True)
    states = out.hidden_states[-1].numpy()
    found = {"states": states[there], "mean": (states * there[..., None]).sum(1) / there.sum(1, keepdims=True)}
    if hasattr(out, "logits"):
        found["logits"] = out.logits.numpy()[there]
    elif out.pooler_output is not None:
        found["pooler"] = out.pooler_output.numpy()
    return found


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    there = rows["valid"]
    states = model.apply(params, "states", rows["tokens"], there)
    found = {"states": np.asarray(states)[there]}
    found["mean"] = np.asarray(states * there[..., None]).sum(1) / there.sum(1, keepdims=True)
    if model.sizes.head:
        found["logits"] = np.asarray(model.apply(params, "logits", states))[there]
    if model.sizes.pooler:
        found["pooler"] = np.asarray(model.apply(params, "summary", states))
    return found


_CLASS = resolve(f"simvlm_jax.{_MODEL}:BERT")
_REFERENCE = {"hf": Reference(_load, _rows, _theirs, _ours)}
FAMILIES = {
    name: Family(_CLASS, ("bert",), lambda s, o, pool=pool: _plan(pool, s, o), _table, {"hf": _written}, _REFERENCE)
    for name, pool in (("bert", ""), ("minilm", "mean"))
}
