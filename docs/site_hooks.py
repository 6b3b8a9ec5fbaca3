"""MkDocs hooks: pages that do not lie in docs/. The API reference has a page a room, found in the package's folders; the reports of
benchmarks/ and CONTRIBUTING.md are pages too. Sources are read, never imported."""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "simvlm_jax"
REPORTS = sorted(p for p in (ROOT / "benchmarks").iterdir() if p.suffix in (".md", ".svg"))


def rooms() -> dict[str, list[Path]]:
    """{room: its modules}: the files beside the folders are the room "simvlm_jax", and a folder in a room is one of its own."""
    found = {"simvlm_jax": sorted(p for p in PACKAGE.glob("*.py") if p.stem != "__init__")}
    for folder in sorted(p for p in PACKAGE.rglob("*") if p.is_dir() and p.name != "__pycache__"):
        modules = sorted(p for p in folder.glob("*.py") if p.stem != "__init__")
        if modules:
            found[folder.relative_to(PACKAGE).as_posix()] = modules
    return found


def first_sentence(module: Path) -> str:
    """The first sentence of a module's docstring."""
    text = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0]


def dotted(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts)


def page_of(room: str) -> str:
    return f"reference/{room.replace('/', '-')}.md"


def room_page(room: str, modules: list[Path]) -> str:
    """The Markdown of a room's page: its modules in a table, then what is public in each."""
    lines = [f"# {room}", "", "| module | |", "|---|---|"]
    lines += [f"| [`{m.stem}`](#{dotted(m)}) | {first_sentence(m).replace('|', '&#124;')} |" for m in modules]
    for m in modules:
        lines += ["", f"## {m.stem} {{ #{dotted(m)} }}", "", f"::: {dotted(m)}", "    options:"]
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false"]
    return "\n".join(lines) + "\n"


def index_page() -> str:
    """The Markdown of the reference's first page: every room with its modules."""
    lines = [
        "# API reference",
        "",
        "Made from the docstrings. What letters such as [B,T] mean is in `core/types.py`.",
        "",
    ]
    lines += ["| room | modules |", "|---|---|"]
    for room, modules in rooms().items():
        names = ", ".join(f"`{m.stem}`" for m in modules)
        lines.append(f"| [{room}]({posixpath.basename(page_of(room))}) | {names} |")
    return "\n".join(lines) + "\n"


def on_config(config):
    """Adds the made pages to the navigation."""
    reports = [{p.stem.replace("_", " "): f"benchmarks/{p.name}"} for p in REPORTS if p.suffix == ".md"]
    config.nav.append({"Benchmarks": reports})
    config.nav.append({"Reference": ["reference/index.md", *({room: page_of(room)} for room in rooms())]})
    return config


def on_files(files, config):
    """Adds the made pages."""
    files.append(File.generated(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    for path in REPORTS:
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "reference/index.md", content=index_page()))
    for room, modules in rooms().items():
        files.append(File.generated(config, page_of(room), content=room_page(room, modules)))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to what lies beside docs/ in the repository, and inside the site; numbers stay on the line of their deviation."""
    up = posixpath.relpath(".", posixpath.dirname(page.file.src_uri) or ".")
    up = "" if up == "." else f"{up}/"
    if page.file.src_uri == "contributing.md":
        return markdown.replace("](docs/", "](")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/", f"]({up}benchmarks/", markdown)
    return markdown.replace("](../CONTRIBUTING.md", f"]({up}contributing.md").replace(" ± ", "\u00a0±\u00a0")
