"""Weights as their authors keep them, without a config beside them: their own modules, or others' readers, say the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.interop.family import Options, families
from simvlm_jax.interop.reference import random_texts
from simvlm_jax.jobs.weights import export_run, import_run
from simvlm_jax.run.load import load_run
from tests.interop import harness
from tests.models.from_torch import numpy_state

RNG = np.random.default_rng(0)


def close(ours, theirs):
    """Within 1e-5 of their largest."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def named(tree):
    """A tree's arrays by path, all off their initial values."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(k.key for k in path): np.asarray(x) + 0.05 * RNG.normal(size=x.shape).astype(np.float32)
        for path, x in flat
    }


def nested(flat):
    tree = {}
    for name, x in flat.items():
        *folders, last = name.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = jnp.asarray(x)
    return tree


def tokenizer(tmp):
    harness.byte_tokenizer(tmp)
    return tmp / "tokenizer.json"


# ---- big_vision's SigLIP, its modules laid out in Flax as models/vit.py and models/proj/image_text/text_transformer.py name them ----


class Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        up = nn.Dense(self.width)(x)
        return nn.Dense(x.shape[-1])(nn.gelu(up))


Mlp.__name__ = "MlpBlock"


class Block(nn.Module):
    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y)
        return x + Mlp(self.mlp)(nn.LayerNorm()(x)), None


class Encoder(nn.Module):
    depth: int
    heads: int
    mlp: int
    scan: bool

    @nn.compact
    def __call__(self, x):
        if self.scan:
            layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = layers(self.heads, self.mlp, name="encoderblock")(x, None)
        else:
            for i in range(self.depth):
                x, _ = Block(self.heads, self.mlp, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Head(nn.Module):
    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        x = nn.MultiHeadDotProductAttention(self.heads)(jnp.tile(probe, (len(x), 1, 1)), x)
        return (x + Mlp(self.mlp)(nn.LayerNorm()(x)))[:, 0]


Head.__name__ = "MAPHead"


class Image(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(24, (8, 8), (8, 8), padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, 24)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], 24))
        return Head(3, 40)(Encoder(2, 3, 40, self.scan, name="Transformer")(x))


class Text(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(harness.PIECES, 24)(x)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], 24))
        return nn.Dense(24, name="head")(Encoder(3, 3, 40, self.scan)(x)[:, -1])


class TwoTowers(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, image, text):
        z = [Image(self.scan, name="img")(image), Text(self.scan, name="txt")(text)]
        z = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in z]
        t = jnp.exp(self.param("t", nn.initializers.constant(1.5), (1,)))
        return *z, z[0] @ z[1].T * t + self.param("b", nn.initializers.constant(-3.0), (1,))


@pytest.mark.parametrize("scan", [False, True])
def test_siglip_of_big_vision(tmp_path, scan):
    theirs = TwoTowers(scan)
    rows = dict(image=RNG.integers(0, 256, (3, 1, 24, 24, 3), dtype=np.uint8))
    pixels, length = rows["image"][:, 0] / np.float32(127.5) - 1, 9
    flat = named(theirs.init(jax.random.key(0), pixels, np.zeros((3, length), np.int32)))
    np.savez(tmp_path / "siglip.npz", **flat)
    options = Options(tokenizer=str(tokenizer(tmp_path / "words")))
    import_run(str(tmp_path / "siglip.npz"), str(tmp_path / "run"), "siglip", options)
    run = load_run(tmp_path / "run", mesh=None)
    rows |= random_texts(run.model.vocabulary, 3)
    rows["text"][np.arange(3), rows["text_mask"].sum(1) - 1] = run.model.vocabulary.eos
    tokens = np.full((3, length), run.model.vocabulary.pad, np.int32)
    tokens[:, : rows["text"].shape[1]] = np.where(rows["text_mask"], rows["text"], run.model.vocabulary.pad)
    image, text, logits = theirs.apply(nested(flat), pixels, tokens)
    ours = families()["siglip"].reference["hf"].ours(run.model, run.params, run.extra, rows)
    close(ours["image_embeds"], image)
    close(ours["text_embeds"], text)
    close(ours["logits"], logits)
    export_run(str(tmp_path / "run"), str(tmp_path / "out"), "siglip", format="big_vision")
    again = np.load(tmp_path / "out" / "model.npz")
    if not scan:
        assert set(again) == set(flat)
        for name, x in flat.items():
            np.testing.assert_array_equal(again[name], x, err_msg=name)


# ---- vision_transformer's ViT, with timm's reader of it ------------------------------------------------------------


@pytest.mark.parametrize("start", ["", "opt/target/"])
def test_vit_of_its_authors(tmp_path, start):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    D, M, H, P = 24, 40, 3, 8
    draw = lambda *shape: 0.3 * RNG.normal(size=shape).astype(np.float32)  # noqa: E731
    flat = {"cls": draw(1, 1, D), "embedding/kernel": draw(P, P, 3, D), "embedding/bias": draw(D)}
    flat |= {
        "Transformer/posembed_input/pos_embedding": draw(1, 10, D),
        "head/kernel": draw(D, 5),
        "head/bias": draw(5),
    }
    for i in range(2):
        at = f"Transformer/encoderblock_{i}"
        for k in ("query", "key", "value"):
            flat |= {f"{at}/MultiHeadDotProductAttention_1/{k}/{n}": draw(*s) for n, s in kinds((D, H, D // H))}
        flat |= {f"{at}/MultiHeadDotProductAttention_1/out/{n}": draw(*s) for n, s in kinds((H, D // H, D))}
        flat[f"{at}/MultiHeadDotProductAttention_1/out/bias"] = draw(D)
        for k, size in enumerate(((D, M), (M, D))):
            flat |= {f"{at}/MlpBlock_3/Dense_{k}/{n}": draw(*s) for n, s in kinds(size)}
        flat |= {f"{at}/LayerNorm_{k}/{n}": 1 + draw(D) for k in (0, 2) for n in ("scale", "bias")}
    flat |= {f"Transformer/encoder_norm/{n}": 1 + draw(D) for n in ("scale", "bias")}
    np.savez(tmp_path / "vit.npz", **{start + k: x for k, x in flat.items()})
    module = timm.models.VisionTransformer(
        img_size=24, patch_size=P, embed_dim=D, depth=2, num_heads=H, mlp_ratio=M / D, num_classes=5
    ).eval()
    timm.models.vision_transformer._load_weights(module, str(tmp_path / "vit.npz"))
    import_run(str(tmp_path / "vit.npz"), str(tmp_path / "run"), "vit")
    run = load_run(tmp_path / "run", mesh=None)
    image = RNG.integers(0, 256, (3, 1, 24, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = module(torch.from_numpy((image[:, 0] / np.float32(127.5) - 1).transpose(0, 3, 1, 2))).numpy()
    close(np.asarray(run.model.classify(run.params, {}, {"image": image})), theirs)


def kinds(shape):
    """(name, shape) of a map's kernel and bias."""
    return (("kernel", shape), ("bias", shape[1:]))


# ---- OpenAI's CLIP, a TorchScript archive --------------------------------------------------------------------------


def test_clip_of_openai(tmp_path):
    torch = pytest.importorskip("torch")
    own = pytest.importorskip("open_clip")
    vision = dict(image_size=24, width=64, layers=2, head_width=64, patch_size=8)
    text = dict(context_length=13, vocab_size=harness.PIECES, width=64, heads=1, layers=2)
    torch.manual_seed(0)
    module = harness.moved(own.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=text, quick_gelu=True)).eval()
    module.register_buffer("input_resolution", torch.tensor(24))  # as OpenAI's archives have it
    pixels = torch.from_numpy(RNG.normal(size=(2, 3, 24, 24)).astype(np.float32))
    tokens = torch.from_numpy(RNG.integers(0, 256, (2, 13)))
    torch.jit.trace(module, (pixels, tokens), check_trace=False).save(str(tmp_path / "ViT-tiny.pt"))
    options = Options(tokenizer=str(tokenizer(tmp_path / "words")))
    report = import_run(str(tmp_path / "ViT-tiny.pt"), str(tmp_path / "run"), "clip", options)
    assert report["compared"] == {"weights": 0.0}
    run = load_run(tmp_path / "run", mesh=None)
    assert run.model.sizes.activation == "quick_gelu"
    reference = families()["clip"].reference["open_clip"]
    rows = reference.rows(run.model)
    with torch.no_grad():
        theirs = reference.theirs(module, rows)
    ours = reference.ours(run.model, run.params, run.extra, rows)
    for name, x in theirs.items():
        close(ours[name], x)


# ---- llama.cpp's LLaMA, with transformers' reader of it ------------------------------------------------------------


def permuted(x, heads):
    """Rows of queries or keys as llama.cpp keeps them: the two components that turn together stand side by side."""
    return x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_of_a_gguf(tmp_path, tied):
    gguf = pytest.importorskip("gguf")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from simvlm_jax.interop.tokenizers import byte_letters

    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        vocab_size=harness.PIECES,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=500.0),
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    module = harness.moved(transformers.LlamaForCausalLM(config)).eval()
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(3)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    letters = [*byte_letters().values(), "<s>", "</s>", "<pad>", "ab"]
    letters += [f"<|{i}|>" for i in range(harness.PIECES - len(letters))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * 256 + [3] * 3 + [1] + [3] * (harness.PIECES - 260))
    writer.add_token_merges(["a b"])
    for kind, i in (("bos", 256), ("eos", 257), ("pad", 258)):
        getattr(writer, f"add_{kind}_token_id")(i)
    state = numpy_state(module)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, x in state.items():
        if tied and name == "lm_head.weight":
            continue
        heads = 3 if "q_proj" in name else 1
        x = permuted(x, heads) if "q_proj" in name or "k_proj" in name else x
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert import_run(str(tmp_path / "m.gguf"), str(tmp_path / "run"))["family"] == "llama"
    run = load_run(tmp_path / "run", mesh=None)
    reference = families()["llama"].reference["hf"]
    rows = reference.rows(run.model)
    with torch.no_grad():
        theirs = reference.theirs(module, rows)
    ours = reference.ours(run.model, run.params, run.extra, rows)
    for name, x in theirs.items():
        close(ours[name], x)
