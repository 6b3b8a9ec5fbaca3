"""Eight CPU devices, warnings as errors where they are ours, one compilation cache outside the clone, tiny shared data."""

import gc
import importlib.metadata
import os
import platform
import tempfile
import time
from pathlib import Path

QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib") == "0.10.2" and platform.machine() == "x86_64":  # 0.12 knows one way of fusing
    # A quarter less of compiling. This emitter makes fused multiply-adds where it fuses, and pixels, which become float32, then
    # differ in the last bit between programs that laws compare in float64: AVX has no such instructions.
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"
"""XLA flags with which programs of tests are compiled fast: compiling is most of the time."""
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{_DEVICES} {QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "simvlm_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
_TFDS = tempfile.TemporaryDirectory(prefix="simvlm-tests-")
os.environ["TFDS_DATA_DIR"] = _TFDS.name
gc.set_threshold(100_000, 20, 10)  # a sixth of tracing's time was the collector's

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from simvlm_jax.core.build import variants_of  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("parts", "__init__"))
VARIANTS = [f"{p.name}{':' + v if v else ''}" for p in CONFIGS for v in variants_of(str(p))]
"""Every config with every variant, "FILE.py" or "FILE.py:VARIANT"."""
SCENES = "scenes/captions-80_8_32_16"
MOST_MAPS = 15_000


@pytest.fixture(scope="session")
def shared():
    """`shared(folder)`: real data beside the project, or a skip that names what is missing."""

    def find(folder: str) -> Path:
        if not (SHARED / folder).is_dir():
            pytest.skip(f"needs {SHARED / folder}")
        return SHARED / folder

    return find


@pytest.fixture(scope="session")
def tiny_config():
    """`tiny_config(**overrides)`: the public config, shrunken; keys are flattened names such as "train.steps"."""
    from simvlm_jax.core.build import load_config

    def make(variant: str = "", **overrides):
        config = load_config(f"{ROOT / 'configs' / 'prefixlm.py'}{':' + variant if variant else ''}")
        small = {
            "data.parts.pairs.path": SCENES,
            "data.parts.documents.path": "scenes/text-24_8_8_8",
            "train.steps": 4,
            "train.batch_size": 8,
            "eval.batch_size": 8,
            "log.every": 1,
            "checkpoint.every": 2,
            **overrides,
        }
        config.update_from_flattened_dict(small)
        if config.data.parts.documents.rows:
            config.data.parts.documents.rows = 8
        return config

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: the folder that `make(path)` fills, made by the first worker that comes and read by all others."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make) -> Path:
        path, claim, ended = base / "made" / name, base / f"{name}.claim", base / f"{name}.ended"
        try:
            claim.mkdir()
        except FileExistsError:
            waited_until = time.monotonic() + 900
            while not ended.exists() and time.monotonic() < waited_until:
                time.sleep(0.2)
            assert ended.read_text() == "made", f"the worker that makes {name} has failed; see its error"
            return path
        made = "failed"
        try:
            make(path)
            made = "made"
        finally:
            partial = ended.with_suffix(".partial")
            partial.write_text(made)
            partial.replace(ended)
        return path

    return folder


@pytest.fixture(scope="session")
def finished_run(tiny_config, made_once):
    """A run directory of four steps of SimVLM, with everything a run leaves; only to be read."""
    from simvlm_jax import experiment

    return made_once("tiny", lambda path: experiment.run(tiny_config(), str(path)))


@pytest.fixture(scope="session")
def clip_run(made_once):
    """A run directory of four steps of CLIP, scored; only to be read."""
    from simvlm_jax import experiment
    from simvlm_jax.core.build import load_config

    config = load_config(f"{ROOT / 'configs' / 'clip.py'}:smoke")
    config.train.steps = 4
    return made_once("clip", lambda path: experiment.run(config, str(path)))


@pytest.fixture(scope="session")
def blip_run(made_once):
    """A run directory of four steps of BLIP, scored; only to be read."""
    from simvlm_jax import experiment
    from simvlm_jax.core.build import load_config

    config = load_config(f"{ROOT / 'configs' / 'blip.py'}:smoke")
    config.train.steps = 4
    return made_once("blip", lambda path: experiment.run(config, str(path)))


def random_rows(rows: int, length: int = 12, image: int = 32, seed: int = 0, images: int = 1):
    """Numpy rows of random pieces ended by EOS, with every key a model may read; `images` of `image` pixels a side, or none."""
    rng = np.random.default_rng(seed)
    size = rng.integers(3, length, rows)
    slots = np.arange(length)
    text = rng.integers(4, 50, (rows, length)).astype(np.int32)
    text = np.where(slots == size[:, None] - 1, 2, text) * (slots < size[:, None])
    batch = {
        "text": text.astype(np.int32),
        "text_mask": slots < size[:, None],
        "prefix_length": rng.integers(0, size).astype(np.int32),
        "seed": rng.integers(0, 2**32, rows, dtype=np.uint32),
        "weight": np.ones(rows, np.float32),
    }
    if image and images:
        batch["image"] = rng.integers(0, 256, (rows, images, image, image, 3), dtype=np.uint8)
    return batch


@pytest.fixture
def text_batch():
    """`text_batch(rows, length, image, seed)`: see `random_rows`."""
    return random_rows


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops compiled programs between files before they are too many: Linux ends a process at 65,530 maps of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture
def float64():
    """Equalities in float64, where 1e-10 means equal."""
    import jax

    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items):
    """The longest files come first; `--dist loadfile` keeps the tests of each, which share what they compile, on one worker."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/laws/", "tests/test_notebooks.py")))
