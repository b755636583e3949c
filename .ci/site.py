"""A hook of mkdocs: what pages of the documentation link to outside of docs/ is in the site, too.

So the same relative links lead somewhere on the repository's host and in the site. The README is
the start; other Markdown is a page under its own path, so is a notebook with its outputs, and a
file of code is one below code/.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
START = ROOT / "README.md"

_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash", ".cff": "yaml"}


_checkout = tempfile.TemporaryDirectory(prefix="armada-site-")


@event_priority(100)  # before mkdocstrings looks at its settings
def on_config(config: Any) -> Any:
    """Let the reference be read from here: the root is the package, and has another name."""
    named = Path(_checkout.name, "armada")
    if not named.is_symlink():  # mkdocs serve comes here again for each build
        named.symlink_to(ROOT)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_checkout.name]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the start, and whatever can be reached from it and from the pages of docs/."""
    waiting = [START, *sorted(DOCS.rglob("*.md"))]
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        if not file.is_relative_to(DOCS):
            files.append(File.generated(config, site_path(file), content=_content(file)))
        if file.suffix == ".md":
            found = {target for target in _targets(file) if target.is_file()} - seen
            seen |= found
            waiting += sorted(found)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page to where their files are in the site."""
    file = source_of(page.file.src_uri)
    return markdown if file is None else relinked(markdown, file)


def site_path(file: Path) -> str:
    """Where a file of the repository is in the site, before mkdocs makes HTML of it."""
    if file == START:
        return "index.md"
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    path = file.relative_to(ROOT).as_posix()
    if file.suffix == ".ipynb":
        return f"{path.removesuffix('.ipynb')}.md"
    return path if file.suffix == ".md" else f"code/{path}.md"


def source_of(path: str) -> Path | None:
    """The file of Markdown that a page of the site is; none for code."""
    if path == "index.md":
        return START
    return next((file for file in (DOCS / path, ROOT / path) if file.is_file()), None)


def relinked(markdown: str, file: Path) -> str:
    """The text of a page with links as they are in the site; those to nothing stay, for mkdocs to
    complain about."""
    here = PurePosixPath(site_path(file)).parent

    def link(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        if not target.is_file():
            return match[0]
        return f"]({os.path.relpath(site_path(target), here)}{match[2] or ''})"

    return _LINK.sub(link, markdown)


def _targets(file: Path) -> set[Path]:
    links = _LINK.findall(file.read_text(encoding="utf-8"))
    return {(file.parent / path).resolve() for path, _ in links}


def _content(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell))
    code = _fenced(text, _LANGUAGES.get(file.suffix, "text"))
    return f"# {file.relative_to(ROOT).as_posix()}\n\n{code}"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    """A cell of a notebook and its outputs, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield _fenced(source, "python")
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
        else:
            yield _fenced("".join(output.get("text") or data["text/plain"]), "text")


def _fenced(text: str, language: str) -> str:
    return f"~~~~{language}\n{text.rstrip()}\n~~~~\n"
