"""Someone's weights: a file, or a folder with a config and a tokenizer beside it."""

from pathlib import Path
from typing import Any, NamedTuple

from simvlm_jax.core.files import BadFile, read_json
from simvlm_jax.interop.formats import gguf_file, npz, pickled, safetensors_file, shards
from simvlm_jax.interop.formats.tensors import Tensors

CONFIGS = ("config.json", "open_clip_config.json")
_WEIGHTS = (
    *(
        "model.safetensors",
        "model.safetensors.index.json",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "diffusion_pytorch_model.safetensors"),
)
"""Files of weights that folders have, the best first."""
_PICKLED = (".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", ".safetensors.index.json", ".npz", ".gguf", *_PICKLED, ".bin.index.json")


class Source(NamedTuple):
    """Weights and what came with them.

    layout: "hf" (a config.json beside them), "open_clip", "timm", "gguf", "npz" or "bare" (nothing beside them). config: what the
    config or the metadata say, {} for nothing. folder: of the tokenizer and the like. file: of the weights.
    """

    file: Path
    folder: Path
    layout: str
    tensors: Tensors
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the source says it is: model_type, the architecture of a GGUF or of timm, or "open_clip"; "" for nothing."""
        if self.layout == "open_clip":
            return "open_clip_multimodal" if "multimodal_cfg" in self.config.get("model_cfg", {}) else "open_clip"
        said = (self.config.get(k) for k in ("model_type", "general.architecture", "architecture"))
        return str(next(filter(None, said), ""))


def open_source(path: str | Path) -> Source:
    """Opens a file of weights, or a folder with one.

    Raises:
      FileNotFoundError: there is none. BadFile: it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist; name a file of weights or a folder with one")
    file = _weights(path) if path.is_dir() else path
    name = file.name
    if name.endswith(".gguf"):
        found = gguf_file.read(file)
        return Source(file, file.parent, "gguf", found.tensors, found.metadata)
    if name.endswith(".npz"):
        return Source(file, file.parent, "npz", npz.read(file), {})
    if name.endswith(shards.INDEX):
        tensors = shards.read(file, _arrays)
    elif name.endswith((".safetensors", *_PICKLED)):
        tensors = _arrays(file)
    else:
        raise BadFile(
            f"{str(file)!r} ends in none of {', '.join(SUFFIXES)}; name a file of weights or a folder with one"
        )
    tensors = tensors.renamed(_newer)
    own = name.startswith("open_clip")  # a folder may hold the weights, and the configs, of both
    for config in reversed(CONFIGS) if own else CONFIGS:
        if (file.parent / config).is_file():
            said = read_json(file.parent / config)
            if not isinstance(said, dict):
                raise BadFile(f"{file.parent / config} holds no record")
            layout = "open_clip" if "model_cfg" in said or config != "config.json" else "hf"
            layout = "timm" if "architecture" in said and "model_type" not in said else layout
            return Source(file, file.parent, layout, tensors, said)
    return Source(file, file.parent, "bare", tensors, {})


def _arrays(file: Path) -> Tensors:
    return pickled.read(file) if file.name.endswith(_PICKLED) else safetensors_file.read(file)


def _newer(name: str) -> str:
    """A norm's arrays as they are called since transformers 2; those taken over from TensorFlow still have its names."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _weights(folder: Path) -> Path:
    """The file of weights in a folder: one with a usual name, or the only one."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(SUFFIXES))
    if len(found) != 1:
        what = f"holds {len(found)} ({', '.join(p.name for p in found[:4])}); name one" if found else "holds none"
        raise FileNotFoundError(f"{str(folder)!r} {what}: a file that ends in {', '.join(SUFFIXES)}")
    return found[0]
