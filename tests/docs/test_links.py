"""Links of the docs lead to files, and the README leads to every page."""

import re
from pathlib import Path

import pytest
from docs_pages import PAGES, README, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def links(page: Path) -> set[tuple[Path, str]]:
    """Files of this repository that a page links to, each with a place in it, or ""."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    parted = [link.partition("#") for link in found if "://" not in link]
    return {((page.parent / file).resolve() if file else page, at) for file, _, at in parted}


def targets(page: Path) -> set[Path]:
    return {file for file, _ in links(page)}


def places(page: Path) -> set[str]:
    """Headings of a page, as the site and code hosts call them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in targets(page) if not target.is_file()] == []
    for file, place in links(page):
        assert not place or place in places(file), f"{file.name}#{place}"


def test_the_readme_leads_to_every_page() -> None:
    assert len(PAGES) >= 6
    assert {target for target in targets(README) if target.parent == ROOT / "docs"} == set(PAGES)
