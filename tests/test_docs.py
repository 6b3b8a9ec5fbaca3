"""What the documentation says is there is there: commands with their flags, configs, variants and fields; links; code that parses."""

import argparse
import ast
import copy
import functools
import importlib
import re
import shlex
import sys
import types
import urllib.parse

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import parts
from simvlm_jax.cli import COMMANDS
from simvlm_jax.core.build import assign, assign_flags, build, load_config, spec, variants_of
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.data.reader import How
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.eval.suite import Examples
from simvlm_jax.eval.suites import known
from tests.conftest import ROOT
from tests.eval import stub

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "benchmarks").glob("*.md"))
MAIN = {"--config": None, "--workdir": None, "--trust": None, "--mode": ("train", "fit", "eval")}
CONFIGS = sorted((ROOT / "configs").glob("[!_]*.py"))


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(text):
    """(language, text) of every block of code, fenced or indented by four."""
    fences = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for language, code in fences.findall(text):
        yield language.split(" ")[0], code
    for code in re.findall(r"(?:\n\n|\A)((?:    [^\n]*\n)+)", fences.sub("", text)):
        yield "", re.sub(r"^    ", "", code, flags=re.MULTILINE)


def commands(text):
    """Command lines of the blocks of a page, those that go on over lines as one."""
    return [line for language, code in blocks(text) if language != "python" for line in _lines(code)]


def mentions(text):
    """Commands in running text and tables, which need not be whole: `simvlm eval RUN --suite NAME [--out F]`."""
    return [c.replace("\\|", "|") for c in re.findall(r"`(simvlm [^`\n]+)`", text)]


def _lines(code):
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.removeprefix("$ ").split("&&"):
            if re.match(r"\s*(simvlm|python -m simvlm_jax\.main) ", part):
                yield part.strip()


COMMANDS_SHOWN = sorted({(name(p), c) for p in PAGES for c in commands(p.read_text())})
MENTIONED = sorted({(name(p), c) for p in PAGES for c in mentions(p.read_text())})


@functools.cache
def _config(path):
    return load_config(str(ROOT / path))


def config_of(path):
    """A config that a page names, to be changed; None of a sweep, or of a walk-through's own folder."""
    if path.startswith("configs/sweeps/"):
        _config(path)
    return copy.deepcopy(_config(path)) if re.match(r"configs/\w+\.py", path) else None


class Parsed(Exception):
    """(parser, flags, words left): flags were read, and nothing else of the command is wanted."""


def parsed(words, monkeypatch, read=True):
    """(the parser, the command's flags, the words it leaves), as the command itself reads them; without `read` the parser."""
    depth = [0]

    def outermost(original):
        def parse(self, args=None, namespace=None):
            if not read:
                raise Parsed(self, None, None)
            depth[0] += 1
            try:
                found = original(self, args, namespace)
            finally:
                depth[0] -= 1
            if depth[0]:
                return found
            raise Parsed(self, *found) if isinstance(found, tuple) else Parsed(self, found, [])

        return parse

    for method in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, outermost(getattr(argparse.ArgumentParser, method)))
    module = importlib.import_module(f"simvlm_jax.cli.{words[0].replace('-', '_')}")
    with pytest.raises(Parsed) as found:
        module.main(words[1:])
    return found.value.args


def options(parser):
    """(flags, subcommands) of a parser and of those below it."""
    flags, below = {"--trust", "--help"}, set()
    for action in parser._actions:
        flags |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            below |= set(action.choices)
            flags = flags.union(*(options(p)[0] for p in action.choices.values()))
    return flags, below


@pytest.mark.parametrize(("page", "mention"), MENTIONED)
def test_mentions_name_what_is_there(page, mention, monkeypatch):
    word, *rest = mention.split()[1:]
    if not word.startswith("-") and word != "COMMAND":
        assert word in COMMANDS, mention
        flags, below = options(parsed([word], monkeypatch, read=False)[0])
        assert not below or not rest or set(rest[0].split("|")) <= below, mention
        assert set(re.findall(r"(?<![\w-])--[\w-]+", mention)) <= flags | {"--config", "--setup_file"}, mention


@pytest.mark.parametrize(("page", "command"), COMMANDS_SHOWN)
def test_commands_name_what_is_there(page, command, monkeypatch, capsys):
    words = shlex.split(command)
    if words[0] == "python":
        return check_training(words[3:])
    words = words[1:]
    assert words[0] in COMMANDS, command
    try:
        _, flags, rest = parsed(words, monkeypatch)
    except SystemExit:
        pytest.fail(f"{page}: {command}: {capsys.readouterr().err}")
    named = [getattr(flags, "config", None) or "", *(getattr(flags, "configs", None) or [])]
    configs = [config for c in named if (config := config_of(c)) is not None]
    fields = [w for w in rest if w.startswith("--config.")]
    if words[:2] != ["data", "web"]:  # whose further flags are Beam's
        assert rest == fields, f"{command}: nobody takes {set(rest) - set(fields)}"
    for config in configs:
        assign_flags(config, fields)
        for assignment in flags.set if words[:2] == ["data", "inspect"] else ():
            assign(config, assignment)
    if suite := getattr(flags, "suite", None):
        check_suite(suite, flags.set)


def check_training(words):
    """Flags of the entry point: its own, with what they take, and fields of the config."""
    given, fields = {}, []
    words = iter(words)
    for word in words:
        flag, mark, value = word.partition("=")
        if flag.startswith("--config."):
            fields.append(word)
            continue
        assert flag in MAIN, word
        given[flag] = value if mark else next(words)
        assert MAIN[flag] is None or given[flag] in MAIN[flag], word
    config = config_of(given["--config"])
    if config is not None:
        assign_flags(config, fields)


def check_suite(suite, assignments):
    """A suite of the list or of some config, and fields that it has."""
    found = [known()[suite][1]] if suite in known() else []
    for path in CONFIGS if not found else ():
        for variant in variants_of(str(path)) if path.stem != "parts" else ():
            suites = _config(f"configs/{path.name}{':' + variant if variant else ''}").eval.suites
            found += [suites[suite]] if suite in suites else []
    assert found, f"no suite {suite!r}"
    for assignment in assignments:
        assign(copy.deepcopy(found[0]), assignment)


def test_pages_show_commands():
    shown = [c.split()[1] for _, c in COMMANDS_SHOWN if c.startswith("simvlm ")]
    assert set(shown) >= set(COMMANDS), set(COMMANDS) - set(shown)
    assert sum(c.startswith("python") for _, c in COMMANDS_SHOWN) > 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_variants_in_tables_exist(page):
    for file, variant in re.findall(r"`configs/(\w+)\.py:([^`\s]+)`", page.read_text()):
        assert variant in variants_of(str(ROOT / "configs" / f"{file}.py")), f"configs/{file}.py:{variant}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_parses(page):
    for language, code in blocks(page.read_text()):
        if language == "python":
            ast.parse(code)


def anchors(page):
    """What headings of a page can be linked by."""
    heads = re.findall(r"^#+ (.*?)(?: \{ ?#([\w.-]+) ?\})?$", page.read_text(), re.MULTILINE)
    return {given or re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head, given in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", page.read_text()):
        link = urllib.parse.urlsplit(target)
        if link.scheme:
            assert link.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", link.netloc), target
            if link.netloc == "arxiv.org":
                assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}", link.path), target
            continue
        there = (page.parent / link.path).resolve() if link.path else page
        if "reference" in link.path.split("/"):  # pages that only the site has, whose build checks them
            continue
        assert there.exists(), target
        assert not link.fragment or link.fragment in anchors(there), target


@pytest.fixture(scope="module")
def walk_through(tmp_path_factory):
    """The files of the walk-throughs, written as the pages have them, and `mylab` importable as a named config makes it."""
    home = tmp_path_factory.mktemp("walk")
    for page in sorted((ROOT / "docs" / "extend").glob("*.md")):
        for path, code in re.findall(
            r'^```python title="([^"]+)"\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE
        ):
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(code)
    load_config(f"{home}/mylab/words.py:smoke")
    yield home
    for module in [m for m in sys.modules if m.split(".")[0] == "mylab"]:
        del sys.modules[module]


def test_a_model_in_three_files(walk_through):
    """Its config builds and its step has a loss; its own test passes."""
    config = load_config(f"{walk_through}/mylab/words.py")
    model = build(config.model, vocabulary=Vocabulary(320, 24), image_size=config.data.image_size)
    rows = {"image": ((1, 64, 64, 3), np.uint8), "text": ((24,), np.int32), "text_mask": ((24,), bool)}
    made = {k: np.ones((2, *shape), kind) for k, (shape, kind) in rows.items()} | {"weight": np.ones(2, np.float32)}
    batch = {"pairs": made}
    params = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), batch)[0]))
    how = dict(step=0, train=True)

    def terms(params):
        features, first, _ = model.per_example(params, {}, batch, rngs=jax.random.key(0), **how)
        return {**first, **model.across_batch(params, {}, features, **how)[0]}

    assert set(jax.eval_shape(terms, params)) == {"contrastive"}
    assert set(model.capabilities()) >= {"embed_image", "embed_text", "similarity"}
    test = importlib.import_module("mylab.test_words")
    checks = [check for name, check in vars(test).items() if name.startswith("test_")]
    assert checks
    for check in checks:
        check()


def test_a_suite(walk_through):
    suite = build(spec("mylab.diversity:Diversity", how=parts.decoding(), path="x"))
    tokenizer = stub.tokenizer()
    engine = stub.engine(stub.Stub(tokenizer, says=("red", "a red dog")), tokenizer)
    rows = [{"first": i, "captions": ("a",)} for i in range(4)]
    answered = suite.answers(engine, Examples("test", stub.ListSource(rows), Pixels(8)))
    assert suite.outcome(engine, answered.values).scores == {"words": 2.0, "distinct_1": 3 / 8, "distinct_2": 0.5}


def test_a_reader(walk_through, tmp_path):
    file = walk_through / "simvlm_jax" / "data" / "readers" / "lists.py"
    module = types.ModuleType("lists")
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    how = How("train")
    assert not module.accepts(tmp_path, how)
    (tmp_path / "pictures.lst").write_text("a.jpg\nb.jpg\na.jpg\n")
    (tmp_path / "sentences.lst").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.jpg").write_bytes(b"picture")
    source = module.read(tmp_path, how)
    assert (
        module.accepts(tmp_path, how) and not module.accepts(tmp_path, How("train", images=False)) and len(source) == 2
    )
    assert source[0] == {"key": "a.jpg", "image": b"picture", "captions": ["one", "three"]}
    (tmp_path / "sentences.lst").write_text("one\n")
    with pytest.raises(ValueError, match="must be of one length"):
        module.read(tmp_path, how)


def test_a_task(walk_through):
    config = load_config(f"{walk_through}/mylab/cloze_scenes.py")
    tokenizer = stub.tokenizer(16)
    example = {"key": "k", "image": np.zeros((8, 8, 3), np.uint8), "captions": ["a red dog"]}
    row = dict(example)
    for transform in config.data.parts.pairs.transforms:
        row = build(transform, tokenizer=tokenizer)(row, np.random.default_rng(0))
    assert set(row) == {"image", "text", "text_mask", "prefix_length", "seed"}
    assert 0 < row["prefix_length"] < row["text_mask"].sum()
    suite = build(config.eval.suites.cloze)
    asked = [(e["question"], e["answer"]) for e in suite.expand(example)]
    assert asked == [("_ red dog", "a"), ("a _ dog", "red"), ("a red _", "dog")]


def test_every_room_is_on_the_map():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [p.name for p in (ROOT / "simvlm_jax").iterdir() if (p / "__init__.py").exists()]
    assert not [room for room in rooms if not re.search(rf"^  {room}/ ", page, re.MULTILINE)]
