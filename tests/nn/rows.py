"""A small language model made of the parts in nn/, and tiny models of transformers whose weights it takes over by name.

A row is one family: how its sizes and style are written here, how it is built there, and which module there is which one here.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.masks import Sight, bidirectional, cross_mask, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import LearnedPositions
from simvlm_jax.nn.sizes import NO_BIAS, Bias, Compute, Rotary, Size, Style
from simvlm_jax.nn.stack import Stack
from tests.models import from_torch

VOCABULARY, LENGTH, CONTEXT = 50, 16, 5


class Row(NamedTuple):
    """A family.

    theirs: its class in transformers, and what its config takes. names: of modules there, with N for a layer's number, and of
    what they are here. prepare: turns their weights into those of ordinary linear maps. layers: names of the layers here, where
    they are not layer_N. tied, head_bias, positions, embed_norm, final_norm, causal: what the model has around its stack.
    """

    theirs: tuple[str, dict[str, Any]]
    size: Size
    style: Style
    names: dict[str, str]
    prepare: Callable[[dict], dict] = lambda state: state
    layers: tuple[str, ...] = ()
    tied: bool = True
    head_bias: bool = False
    positions: bool = False
    embed_norm: bool = False
    final_norm: bool = True
    causal: bool = True
    cross: bool = False


class Network(nn.Module):
    """A row's model: tokens [B,T] where `valid` to (states [B,T,D], logits [B,T,V])."""

    row: Row
    compute: Compute
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        row, dtype = self.row, self.compute.activation_dtype
        D = row.size.width
        self.embed = TokenEmbedding(VOCABULARY, D, dtype, row.tied, row.head_bias)
        if row.positions:
            self.position = LearnedPositions(LENGTH, D, dtype)
        if row.embed_norm:
            self.embed_norm = norm_of(row.style, dtype)()
        drops = dict(dropout=self.dropout, drop_path=self.drop_path)
        self.stack = Stack(row.size, self.compute, row.cross, **drops, style=row.style)
        if row.final_norm:
            self.norm = norm_of(row.style, dtype)()

    def __call__(self, tokens, valid, context=None, seen=None):
        position = jnp.maximum(jnp.cumsum(valid, 1, dtype=jnp.int32) - 1, 0)
        sight = bidirectional(valid)
        if self.row.causal:
            sight = Sight(position, sight.segment)
        cross = None if context is None else cross_mask(sight, seen)
        x = self.stack(self._begin(tokens, position), Shared(self_mask(sight), context, cross, position))
        return self._end(x)

    def step(self, tokens, new: Written, layers, context=(), seen=None):
        cross = cross_mask(new.mask.query, seen) if context else None
        x = self._begin(tokens, new.position)
        x, layers = self.stack.step(x, layers, new.slot, new.mask, context, cross, position=new.position)
        return self._end(x), layers

    def look(self, context):
        return self.stack.context(context)

    def _begin(self, tokens, position):
        x = self.embed(tokens)
        if self.row.positions:
            x = x + self.position(position)
        return self.embed_norm(x) if self.row.embed_norm else x

    def _end(self, x):
        x = self.norm(x) if self.row.final_norm else x
        return x, self.embed.logits(x)


def network(row: Row, scan: bool = False, dtype: str = "float32") -> Network:
    return Network(row, Compute(dtype, scan=scan))


def inputs(row: Row, length: int) -> tuple[jax.Array, jax.Array, tuple]:
    """Tokens [3,length], which are there (all; padding on the right; padding on the left), and what is looked at."""
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(1, VOCABULARY, (3, length)), jnp.int32)
    slots = np.arange(length)
    valid = jnp.asarray(np.stack([slots >= 0, slots < length - 2, slots >= 1]))
    if not row.cross:
        return tokens, valid, ()
    context = jnp.asarray(draw.normal(size=(3, CONTEXT, row.size.width)), jnp.float32)
    return tokens, valid, (context, jnp.asarray(np.arange(CONTEXT) < np.asarray([[5], [3], [4]])))


def shapes(row: Row, scan: bool = False) -> Any:
    """The parameters of a row's model, as shapes."""
    tokens, valid, given = inputs(row, 4)
    return nn.unbox(jax.eval_shape(network(row, scan).init, jax.random.key(0), tokens, valid, *given))["params"]


def copied(row: Row, module) -> Any:
    """Weights of a module of torch as parameters of the row's model."""
    state = row.prepare(from_torch.numpy_state(module))
    if row.tied:
        state.pop("lm_head.weight", None)
    return matched(state, shapes(row), row.names, row.layers)


def matched(state: dict[str, np.ndarray], target: Any, names: dict[str, str], layers: tuple[str, ...] = ()) -> Any:
    """Weights of torch as parameters of the shapes of `target`, by name; each is used, each is found."""
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(target)}
    found = {}
    for name, x in state.items():
        number = re.search(r"\.(\d+)\.", name)
        plain = name.replace(number[0], ".N.") if number else name
        stem, kind = re.sub(r"\.(weight|bias)$", "", plain), plain.rpartition(".")[2]
        layer = "" if number is None else dict(enumerate(layers)).get(int(number[1]), f"layer_{number[1]}")
        ends = ("_bias", "/bias") if kind == "bias" else ("", "/scale")
        places = [place.replace("N", layer) + end for place in names[stem].split("|") for end in ends]
        (ours,) = (place for place in places if place in flat)
        linear = x.ndim == 2 and not ours.startswith(("embed/", "position", "patches/"))
        found[ours] = jnp.asarray((x.T if linear else x).reshape(flat[ours].shape))
    assert found.keys() == flat.keys(), sorted(found.keys() ^ flat.keys())
    return unflatten_dict(found, sep="/")


def vit_params(state: dict[str, np.ndarray], target: Any) -> Any:
    """Weights of ViTModel as those of nn.vit.ViT."""
    patches = "embeddings.patch_embeddings.projection.weight"
    return matched({**state, patches: from_torch.patches(state[patches])}, target, VIT)


def stacked(row: Row, params: Any) -> Any:
    """The parameters of the scanned model."""
    layers, every = params["stack"], row.style.cross_every if row.cross else 0
    pile = lambda names: jax.tree.map(lambda *xs: jnp.stack(xs), *(layers[n] for n in names))  # noqa: E731
    numbers = range(row.size.depth)
    if not every:
        return {**params, "stack": {"layers": pile([f"layer_{i}" for i in numbers])}}
    groups = {f"layer_{k}": pile([f"layer_{i}" for i in numbers[k::every]]) for k in range(every)}
    groups["cross_layer_0"] = pile([f"cross_layer_{i}" for i in range(row.size.depth // every)])
    return {**params, "stack": {"layers": groups}}


def under(prefix: str, ours: str, **names: str) -> dict[str, str]:
    """Entries of `names` for several modules of one folder."""
    return {f"{prefix}{theirs}": f"{ours}{name}" for theirs, name in names.items()}


def _conv1d(state):
    """GPT-2's maps stand transposed, and those of queries, keys and values in one."""
    out = {}
    for name, x in state.items():
        if ".c_attn." in name:
            parts = zip("qkv", np.split(x, 3, axis=-1), strict=True)
            out |= {name.replace("c_attn", k): part.T if x.ndim == 2 else part for k, part in parts}
        else:
            out[name] = x.T if re.search(r"\.(c_proj|c_fc)\.weight", name) else x
    return out


def _positions_from_two(state):
    """OPT's table of positions begins with two rows that nobody reads."""
    name = "model.decoder.embed_positions.weight"
    return {**state, name: state[name][2:]}


def _first_type(state):
    """BERT adds the vector of a token's type; where there is one type, it may as well stand in the positions."""
    kinds = state.pop("embeddings.token_type_embeddings.weight")
    name = "embeddings.position_embeddings.weight"
    return {**state, name: state[name] + kinds[0]}


_LAYER = "model.layers.N."
LLAMA = {
    "model.embed_tokens": "embed/embedding",
    "lm_head": "embed/softmax",
    "model.norm": "norm",
    _LAYER + "input_layernorm": "stack/N/norm_attention",
    **under(_LAYER + "self_attn.", "stack/N/attention/", q_proj="query", k_proj="key", v_proj="value", o_proj="out"),
    **under(_LAYER + "self_attn.", "stack/N/attention/", q_norm="query_norm", k_norm="key_norm"),
    _LAYER + "post_attention_layernorm": "stack/N/norm_mlp",
    **under(_LAYER + "mlp.", "stack/N/mlp/", up_proj="up", gate_proj="gate", down_proj="down"),
}
MLLAMA = {name.removeprefix("model."): place for name, place in LLAMA.items()} | {
    "layers.N.input_layernorm": "stack/N/norm_attention|stack/N/norm_cross",
    **under(
        "layers.N.cross_attn.", "stack/N/cross_attention/", q_proj="query", k_proj="key", v_proj="value", o_proj="out"
    ),
    **under("layers.N.cross_attn.", "stack/N/cross_attention/", q_norm="query_norm", k_norm="key_norm"),
    **under("layers.N.", "stack/N/", cross_attn_attn_gate="gate_cross", cross_attn_mlp_gate="gate_mlp"),
}
GPTJ = {
    **under("transformer.", "", wte="embed/embedding", ln_f="norm"),
    "lm_head": "embed/softmax",
    "transformer.h.N.ln_1": "stack/N/norm_attention",
    **under(
        "transformer.h.N.attn.", "stack/N/attention/", q_proj="query", k_proj="key", v_proj="value", out_proj="out"
    ),
    **under("transformer.h.N.mlp.", "stack/N/mlp/", fc_in="up", fc_out="down"),
}
PHI = {
    **under("model.", "", embed_tokens="embed/embedding", final_layernorm="norm"),
    "lm_head": "embed/softmax",
    _LAYER + "input_layernorm": "stack/N/norm_attention",
    **under(_LAYER + "self_attn.", "stack/N/attention/", q_proj="query", k_proj="key", v_proj="value", dense="out"),
    **under(_LAYER + "self_attn.", "stack/N/attention/", q_layernorm="query_norm", k_layernorm="key_norm"),
    **under(_LAYER + "mlp.", "stack/N/mlp/", fc1="up", fc2="down"),
}
GPT2 = {
    **under("transformer.", "", wte="embed/embedding", wpe="position/table", ln_f="norm"),
    **under("transformer.h.N.", "stack/N/", ln_1="norm_attention", ln_2="norm_mlp"),
    **under("transformer.h.N.attn.", "stack/N/attention/", q="query", k="key", v="value", c_proj="out"),
    **under("transformer.h.N.mlp.", "stack/N/mlp/", c_fc="up", c_proj="down"),
}
_LAYER = "model.decoder.layers.N."
OPT = {
    **under(
        "model.decoder.", "", embed_tokens="embed/embedding", embed_positions="position/table", final_layer_norm="norm"
    ),
    **under(_LAYER, "stack/N/", self_attn_layer_norm="norm_attention", final_layer_norm="norm_mlp"),
    **under(_LAYER + "self_attn.", "stack/N/attention/", q_proj="query", k_proj="key", v_proj="value", out_proj="out"),
    **under(_LAYER, "stack/N/mlp/", fc1="up", fc2="down"),
}
_LAYER = "encoder.layer.N."
BERT = {
    **under(
        "embeddings.",
        "",
        word_embeddings="embed/embedding",
        position_embeddings="position/table",
        LayerNorm="embed_norm",
    ),
    **under(_LAYER + "attention.self.", "stack/N/attention/", query="query", key="key", value="value"),
    _LAYER + "attention.output.dense": "stack/N/attention/out",
    _LAYER + "attention.output.LayerNorm": "stack/N/norm_attention",
    **under(_LAYER + "crossattention.self.", "stack/N/cross_attention/", query="query", key="key", value="value"),
    _LAYER + "crossattention.output.dense": "stack/N/cross_attention/out",
    _LAYER + "crossattention.output.LayerNorm": "stack/N/norm_cross",
    _LAYER + "intermediate.dense": "stack/N/mlp/up",
    _LAYER + "output.dense": "stack/N/mlp/down",
    _LAYER + "output.LayerNorm": "stack/N/norm_mlp",
}

VIT = {
    **under("embeddings.", "", cls_token="class_token/tokens", position_embeddings="position"),
    "embeddings.patch_embeddings.projection": "patches/kernel|patches",
    **under("layers.N.", "stack/N/", layernorm_before="norm_attention", layernorm_after="norm_mlp"),
    **under("layers.N.attention.", "stack/N/attention/", q_proj="query", k_proj="key", v_proj="value", o_proj="out"),
    **under("layers.N.mlp.", "stack/N/mlp/", fc1="up", fc2="down"),
    "layernorm": "norm",
}

_SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
_MODERN = dict(**_SHAPE, num_key_value_heads=2)
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_OLD = dict(n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=LENGTH)
_SIZE, _GROUPED = Size(32, 2, 4, 48), Size(32, 2, 4, 48, kv_heads=2)
_LLAMA: dict[str, Any] = dict(activation="silu", norm="rms", bias=NO_BIAS, gated=True, rotary=Rotary(500.0))
_GPT: dict[str, Any] = dict(activation="gelu", epsilon=1e-5)
_BERT = Style("gelu_exact", epsilon=1e-12, key_bias=True, block="post")
_QKV = Bias(out=False, mlp=False, norm=False)
_ALONE: dict[str, Any] = dict(positions=True, embed_norm=True, final_norm=False)
ROWS = {
    "llama": Row(
        ("LlamaForCausalLM", {**_MODERN, **_ROPE, "head_dim": 6, "rms_norm_eps": 1e-5}),
        Size(32, 2, 4, 48, kv_heads=2, head_width=6),
        Style(**_LLAMA, epsilon=1e-5),
        LLAMA,
        tied=False,
    ),
    "smollm2": Row(
        (
            "LlamaForCausalLM",
            {**_SHAPE, **_ROPE, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}
            | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        ),
        Size(24, 2, 3, 48, kv_heads=1),
        Style(**_LLAMA, epsilon=1e-5),
        LLAMA,
    ),
    "qwen2": Row(
        ("Qwen2ForCausalLM", {**_MODERN, **_ROPE, "tie_word_embeddings": True}),
        _GROUPED,
        Style(**{**_LLAMA, "bias": _QKV}, key_bias=True),
        LLAMA,
    ),
    "qwen3": Row(
        ("Qwen3ForCausalLM", {**_MODERN, **_ROPE, "head_dim": 6, "tie_word_embeddings": True}),
        Size(32, 2, 4, 48, kv_heads=2, head_width=6),
        Style(**_LLAMA, qk_norm="self"),
        LLAMA,
    ),
    "mistral": Row(
        ("MistralForCausalLM", {**_MODERN, **_ROPE, "sliding_window": 3, "head_dim": 8}),
        _GROUPED,
        Style(**_LLAMA, window=3),
        LLAMA,
        tied=False,
    ),
    "gptj": Row(
        ("GPTJForCausalLM", {**_OLD, "rotary_dim": 4}),
        _SIZE,
        Style(
            **_GPT,
            bias=Bias(query=False, value=False, out=False),
            block="parallel",
            rotary=Rotary(share=0.5, pairing="interleaved"),
        ),
        GPTJ,
        tied=False,
        head_bias=True,
    ),
    "phi": Row(
        (
            "PhiForCausalLM",
            {**_SHAPE, "qk_layernorm": True, "hidden_act": "gelu_new"}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        ),
        _SIZE,
        Style(**_GPT, key_bias=True, block="parallel", qk_norm="self", rotary=Rotary(share=0.5)),
        PHI,
        tied=False,
        head_bias=True,
    ),
    "gpt2": Row(("GPT2LMHeadModel", _OLD), _SIZE, Style(**_GPT, key_bias=True), GPT2, _conv1d, positions=True),
    "opt": Row(
        (
            "OPTForCausalLM",
            dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
            | {"word_embed_proj_dim": 32, "max_position_embeddings": LENGTH},
        ),
        _SIZE,
        Style("relu", epsilon=1e-5, key_bias=True),
        OPT,
        _positions_from_two,
        positions=True,
    ),
    "bert": Row(
        ("BertModel", {**_SHAPE, "max_position_embeddings": LENGTH}),
        _SIZE,
        _BERT,
        BERT,
        _first_type,
        causal=False,
        **_ALONE,
    ),
    "bert_decoder": Row(
        ("BertModel", {**_SHAPE, "max_position_embeddings": LENGTH, "is_decoder": True, "add_cross_attention": True}),
        _SIZE,
        _BERT,
        BERT,
        _first_type,
        cross=True,
        **_ALONE,
    ),
    "mllama": Row(
        (
            "MllamaTextModel",
            {**_MODERN, **_ROPE, "num_hidden_layers": 6, "cross_attention_layers": [1, 4]}
            | {"vocab_size": VOCABULARY - 8, "rms_norm_eps": 1e-5},
        ),
        Size(32, 4, 4, 48, kv_heads=2),
        Style(**_LLAMA, epsilon=1e-5, qk_norm="cross", cross_every=2, cross_gate=True),
        MLLAMA,
        layers=("layer_0", "cross_layer_0", "layer_1", "layer_2", "cross_layer_1", "layer_3"),
        cross=True,
    ),
}
