"""The site of the documentation builds without a warning, and nothing in it leads nowhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import armada
import pytest
from docs_pages import PAGES, ROOT

for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason="the site needs the extra docs")


class Parsed(HTMLParser):
    """What a page of HTML links to, and the names in it that links may lead to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.links += [named[a] or "" for a in ("href", "src") if a in named and tag != "form"]
        self.names |= {named["id"] or ""} if "id" in named else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    assert [page.stem for page in PAGES if not (site / page.stem / "index.html").is_file()] == []
    # What they link to outside of docs/, as a page or as code.
    assert (site / "cache_schemas" / "index.html").is_file()
    assert (site / "code" / "stages" / "distill" / "losses" / "armada.py" / "index.html").is_file()


def test_no_link_leads_nowhere(site: Path) -> None:
    pages = {file: Parsed(file) for file in site.rglob("index.html")}
    assert len(pages) > len(PAGES)
    lost = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].names if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                lost.append(f"{file.relative_to(site)}: {link}")
    assert lost == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for file in site.rglob("index.html"):
        text = file.read_text(encoding="utf-8")
        assert 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text


def test_the_reference_has_all_names(site: Path) -> None:
    names = Parsed(site / "reference" / "python" / "index.html").names
    public = {name for name in armada.__all__ if name != "__version__"}
    assert public | {"testing.TeacherTests", "testing.ObjectiveTests"} <= {
        name.removeprefix("armada.") for name in names
    }


def test_the_reference_tells_of_nothing_private(site: Path) -> None:
    page = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    bases = re.findall(r"Bases: (.*?)</p>", page, re.DOTALL)
    assert bases
    assert [base for base in bases if re.search(r">_\w|\._", base)] == []
