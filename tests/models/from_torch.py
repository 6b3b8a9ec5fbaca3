"""Weights of torch transformers as our trees, for comparison."""

import numpy as np


def linear(state, name, bias="bias"):
    return {"kernel": state[f"{name}.weight"].T} | ({bias: state[f"{name}.bias"]} if f"{name}.bias" in state else {})


def norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def attention(state, name, heads, names=("q_proj", "k_proj", "v_proj", "out_proj")):
    """Projections [out,in] as [D,H,K] and [H,K,D]."""
    out = {}
    for ours, theirs in zip(("query", "key", "value"), names[:3], strict=True):
        weight = state[f"{name}.{theirs}.weight"]
        out[ours] = weight.T.reshape(weight.shape[1], heads, -1)
        out[f"{ours}_bias"] = state[f"{name}.{theirs}.bias"].reshape(heads, -1)
    weight = state[f"{name}.{names[3]}.weight"]
    out["out"] = weight.T.reshape(heads, -1, weight.shape[0])
    return {**out, "out_bias": state[f"{name}.{names[3]}.bias"]}


def mlp(state, name):
    up, down = (state[f"{name}.{k}.weight"].T for k in ("fc1", "fc2"))
    return {"up": up, "up_bias": state[f"{name}.fc1.bias"], "down": down, "down_bias": state[f"{name}.fc2.bias"]}


def block(state, name, heads):
    return {
        "norm_attention": norm(state, f"{name}.layer_norm1"),
        "attention": attention(state, f"{name}.self_attn", heads),
        "norm_mlp": norm(state, f"{name}.layer_norm2"),
        "mlp": mlp(state, f"{name}.mlp"),
    }


def stack(state, name, depth, heads):
    return {f"layer_{i}": block(state, f"{name}.{i}", heads) for i in range(depth)}


def patches(weight):
    """A convolution [D,C,p,p] as the linear map of a patch [p p C, D]."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def packed_attention(state, name, heads):
    """torch.nn.MultiheadAttention, whose query, key and value weights are one matrix."""
    unpacked = {f"{name}.out_proj.{k}": state[f"{name}.out_proj.{k}"] for k in ("weight", "bias")}
    for k in ("weight", "bias"):
        for which, part in zip("qkv", np.split(state[f"{name}.in_proj_{k}"], 3), strict=True):
            unpacked[f"{name}.{which}_proj.{k}"] = part
    return attention(unpacked, name, heads)


def numpy_state(module):
    return {k: v.detach().numpy() for k, v in module.state_dict().items()}


def perturbed(module):
    """Every parameter moved, so that zeros and ones hide nothing."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module.eval()
