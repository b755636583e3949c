"""Names, messages and pages speak as the field does: terms that were given up do not come back."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("cache_schemas", "stages", "pipeline")
SOURCES = sorted([*ROOT.glob("*.py"), *(f for part in PARTS for f in (ROOT / part).rglob("*.py"))])
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GLOSSARY = ROOT / "docs" / "glossary.md"
EARLIER = "\n## Earlier terms\n"

NAMES = {
    "looks_ahead": "not is_causal",
    "keeps_apart": "isolates_packed_documents",
    "unfit": "invalid",
    "word_total": "teacher_vocab_size",
    "word_count": "vocab_size_of",
    "words_digest": "vocab_digest",
    "WordSums": "TokenSums",
    "WordLoss": "the options of the objective tokens",
    "Heart": "HeartbeatThread",
    "Turn": "LockedView",
    "_Desk": "_WorkerState",
    "_Crew": "_WorkerPool",
    "_Tally": "_Outcomes",
    "Twin": "UnshardedCopy",
    "Order": "JobSpec",
}
"""Of things in the code, and what they are called now."""

PHRASES = {
    r"teachers? of words": "teacher of tokens",
    r"next words?\b": "next token",
    r"probable words?\b": "most probable tokens",
    r"drawn words|words drawn": "sampled tokens",
    r"teach(es)? no words": "teaches no tokens",
    r"students? of words": "language model",
}
"""Of prose, and what is said now."""


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_names(file: Path) -> None:
    found = {name for name in names(file.read_text(encoding="utf-8")) if name in NAMES}
    assert not found, {name: NAMES[name] for name in found}


@pytest.mark.parametrize("file", [*SOURCES, *PAGES], ids=lambda f: str(f.relative_to(ROOT)))
def test_phrases(file: Path) -> None:
    text = " ".join(prose(file).split())
    found = {phrase for phrase in PHRASES if re.search(phrase, text, re.IGNORECASE)}
    assert not found, {phrase: PHRASES[phrase] for phrase in found}


def test_the_glossary_tells_what_each_was_replaced_by() -> None:
    """Each row of its table is one of them, and each of them has a row."""
    _, _, table = GLOSSARY.read_text(encoding="utf-8").partition(EARLIER)
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table.replace("`", ""), re.MULTILINE))
    names = {old: rows.pop(old, None) for old in NAMES}
    assert names == NAMES
    phrases = {
        phrase: [rows.pop(old) for old in [*rows] if re.fullmatch(phrase, old)]
        for phrase in PHRASES
    }
    assert phrases == {phrase: [now] for phrase, now in PHRASES.items()}
    assert rows == {"earlier": "now", "---": "---"}


def prose(file: Path) -> str:
    """What a file says, but for the glossary's table of what is no longer said."""
    return file.read_text(encoding="utf-8").partition(EARLIER)[0]


def test_the_search_finds_what_it_looks_for() -> None:
    assert {"Heart", "unfit"} <= set(names("class Heart:\n    unfit = 1  # Twin\n"))
    assert "Twin" not in set(names("class Heart:\n    unfit = 1  # Twin\n"))
    assert any(re.search(phrase, "a teacher of words") for phrase in PHRASES)


def names(source: str) -> Iterator[str]:
    """Every name in a module, of whatever it is."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string
