"""The house: arrows between rooms, light imports, configs that build, models that nobody else names."""

import ast
import re
import subprocess
import sys

import pytest

from simvlm_jax.core.build import build, load_config, spec
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.run.load import build_model
from tests.conftest import CONFIGS, ROOT, VARIANTS

PACKAGE = ROOT / "simvlm_jax"
EVERYTHING = {"core", "objectives", "parallel", "text", "data", "run", "train", "decode", "infer", "eval"}
ARROWS = {
    "core": set(),
    "nn": {"core"},
    "objectives": {"core"},
    "parallel": {"core"},
    "text": {"core"},
    "decode": {"core"},
    "interop": {"text", "core"},
    "families": {"nn", "objectives", "core"},
    "models": {"families", "nn", "objectives", "core"},
    "data": {"text", "core"},
    "run": {"text", "parallel", "core"},
    "train": {"run", "parallel", "core"},
    "infer": {"decode", "run", "text", "parallel", "core"},
    "eval": {"infer", "decode", "data", "run", "parallel", "text", "core"},
    "jobs": {"interop", "infer", "decode", "data", "run", "text", "parallel", "core"},
    "materials": EVERYTHING,
    "experiment": EVERYTHING | {"materials"},
    "sweep": EVERYTHING | {"materials", "experiment"},
    "main": EVERYTHING | {"experiment"},
    "api": EVERYTHING,
    "cli": EVERYTHING | {"interop", "materials", "experiment", "sweep", "main", "api", "jobs"},
}
FILES = sorted(p for folder in ("simvlm_jax", "configs", "tests") for p in (ROOT / folder).rglob("*.py"))
MODELS = sorted(p.stem for p in (PACKAGE / "models").glob("*.py") if p.stem != "__init__")
ORDINARY = {
    "clip": {
        ".clip",
        ".clip_by_block_rms",
        ".clip_by_global_norm",
        "train/optimizer.py: clip",
        "clip_class_name",
        "{} clip art",
    },
    "bert": {f"text_decoder.bert{end}" for end in ("", ".", ".embeddings.word_embeddings.weight")},
}
"""Code in which a model's name is an ordinary word (gradients and numbers are clipped; an option of the optimizer says how far),
a column of someone's table, a part of someone's module. (open_clip is another library.)"""


PUBLISHED = "jobs/published.py"
"""A table of weights that others have published, which names what they are."""


class _Tokenizer:
    vocabulary = Vocabulary(320, 32)


def rooms_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "simvlm_jax" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "simvlm_jax" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_parse_and_arrows_hold(path):
    imported = set(rooms_imported(path))
    relative = path.relative_to(ROOT)
    if relative.parts[0] != "simvlm_jax" or (relative.name == "__init__.py" and len(relative.parts) == 2):
        return
    room = relative.parts[1].removesuffix(".py")
    assert imported <= ARROWS[room] | {room}, f"{relative} may not import {sorted(imported - ARROWS[room] - {room})}"


def words_of_code(tree):
    """Every name and every string of code, but for docstrings; an attribute's with its dot."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, documented) and n.body and isinstance(n.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        if isinstance(node, ast.Attribute):
            yield f".{node.attr}"
        for field in ("id", "name", "arg", "module", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


@pytest.mark.parametrize("model", MODELS)
def test_only_its_own_files_name_a_model(model):
    own = rf"(?i)(?<![a-z0-9]){model}(?![a-z0-9])"
    if model == "simvlm":  # whose name is the library's too
        own = r"models\.simvlm\b|SimVLM"
    word = re.compile(own)
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).as_posix()
        if here in (f"models/{model}.py", f"interop/maps/{model}.py", PUBLISHED):
            continue
        if path.stem.startswith(f"{model}_"):  # another network of the paper
            continue
        named = {w for w in words_of_code(ast.parse(path.read_text())) if word.search(w.replace("open_clip", ""))}
        assert not {w for w in named if not {w, f"{here}: {w}"} & ORDINARY.get(model, set())}, path


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config_builds(variant):
    config = load_config(str(ROOT / "configs" / variant))
    model = build_model(
        config.model, config.data.image_size, _Tokenizer(), ("yes", "no") if config.data.labels.size else ()
    )
    assert model.capabilities()
    schedule = build(config.optimizer).schedule_for(config.train.steps)
    assert 0 < float(schedule(config.train.steps // 2)) <= config.optimizer.learning_rate
    tokenizer, labels = _Tokenizer(), ("yes", "no")
    assert all(
        build(suite, tokenizer=tokenizer, labels=labels).fields is not None for suite in config.eval.suites.values()
    )
    for part in config.data.parts.values():
        for transform in part.transforms:
            build(transform, tokenizer=tokenizer, labels=labels)


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("optimizer.clip=0.5", "optimizer.clip", 0.5),
        ("optimizer.ema=0.99", "optimizer.ema", 0.99),
        ("model.objective=lm", "model.objective", "lm"),
        ("model.drop_path=0.1", "model.drop_path", 0.1),
        ("model.compute.remat=full", "model.compute.remat", "full"),
        (
            "eval.suites.captions.how.sampler.temperature=0.7",
            "eval.suites.captions.how.sampler.temperature",
            0.7,
        ),
        ("eval.suites.captions.how.beams=3", "eval.suites.captions.how.beams", 3),
        ("data.eval.path=elsewhere", "data.eval.path", "elsewhere"),
        ("checkpoint.best=cider", "checkpoint.best", "cider"),
    ],
)
def test_every_field_can_be_set_from_the_command_line(flag, field, value, monkeypatch):
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(sys, "argv", ["main", f"--config={ROOT / 'configs' / 'prefixlm.py'}", f"--config.{flag}"])
    values(sys.argv)
    found = config.value
    for name in field.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS])
def test_an_unknown_variant_is_named(name):
    with pytest.raises(ValueError, match="no variant 'tall'"):
        load_config(f"{ROOT / 'configs' / name}.py:tall")


def test_an_unknown_field_lists_the_fields():
    with pytest.raises(ValueError, match=r"no field colour; its fields are temperature, top_k, top_p"):
        build(spec("simvlm_jax.decode.sampling:Sampler", colour=1))
    with pytest.raises(ValueError, match="cannot be imported"):
        build(spec("simvlm_jax.decode.sampling:Smpler"))


LIGHT = (
    "import simvlm_jax",
    "from simvlm_jax.cli import main; main(['--help'])",
    "import simvlm_jax.main, simvlm_jax.cli.caption, simvlm_jax.cli.metrics, simvlm_jax.cli.data",
    "import simvlm_jax.cli.eval, simvlm_jax.cli.eval_diff, simvlm_jax.cli.sweep, simvlm_jax.cli.plan",
    "import simvlm_jax.cli.embed, simvlm_jax.cli.classify, simvlm_jax.cli.search, simvlm_jax.cli.complete",
    "import importlib; [importlib.import_module(f'simvlm_jax.cli.{k}') for k in ('import', 'export', 'fetch')]",
)


def test_light_imports():
    heavy = "('jax', 'tensorflow', 'torch', 'flax', 'tensorflow_datasets')"
    check = f"bad = [m for m in {heavy} if m in sys.modules]"
    lines = [f"{code}\n{check}\nif bad: sys.exit(f'{{bad}} loaded by: ' + {code!r})" for code in LIGHT]
    words = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
