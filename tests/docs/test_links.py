"""Links of the docs lead to files, and the README leads to every page."""

import re
from pathlib import Path

import pytest
from docs_pages import PAGES, README, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")


def targets(page: Path) -> set[Path]:
    """Files of this repository that a page links to."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in links if "://" not in link}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in targets(page) if not target.is_file()] == []


def test_the_readme_leads_to_every_page() -> None:
    assert len(PAGES) >= 6
    assert {target for target in targets(README) if target.parent == ROOT / "docs"} == set(PAGES)
