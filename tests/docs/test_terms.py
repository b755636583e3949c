"""Names, messages and pages speak as the field does: terms that were given up do not come back."""

import ast
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
"""Retired names in code, and their successors."""

INTERNAL = {
    "Asked": "CorpusRequest",
    "Asking": "EncodingRun",
    "ask_briefly": "probe",
    "ask_skeleton": "probe_skeleton",
    "place_of_row": "position_of_row",
    "_ask_shard": "_encode_shard",
    "_ask_batches": "_encode_batches",
}
"""The same for names that no user has met: the glossary leaves them out."""

PHRASES = {
    r"teachers? of words": "teacher of tokens",
    r"next words?\b": "next token",
    r"probable words?\b": "most probable tokens",
    r"drawn words|words drawn": "sampled tokens",
    r"teach(es)? no words": "teaches no tokens",
    r"students? of words": "language model",
}
"""Retired terms of prose, and their successors."""

WORDING = {
    r"were cached, ": "already cached",
    r"(asked|asks?|asking) (once )?about": "computed for",
    r"teachers? (is|was|were|are|be) (never )?asked": "run, computed",
    r"who (answered|asked|asks)\b": "teacher, caller",
    r"\bnobody\b": "none, no process",
    r"same command goes on|(push|pull|run)(es|s)? goes? on": "continues",
    r"come while the run": "will be downloaded during training",
    r"who are at the|at the last rows": "other processes are computing",
    r"\bat work\b": "running",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bkin\b": "similar",
    r"as (it was|they were|they are) drawn": "at its initialisation",
    r"\bsay \w+=": "set",
    r"what (comes in|goes out):": "In:, Out:",
    r"what is wrong with": "problems of",
    r"\bwhat else\b": "other, further",
    r"examples? a batch|bytes an? (row|example|token)": "per",
}
"""Turns of phrase that a reader stumbles over, and plain ones."""

OPENINGS = re.compile(r"(Of|That of|Those of|Those that|That which|Whose|What else|What it says) ")
"""A docstring begins with its subject, not with one of these."""


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_names(file: Path) -> None:
    retired = NAMES | INTERNAL
    found = {name for name in names(file.read_text(encoding="utf-8")) if name in retired}
    assert not found, {name: retired[name] for name in found}


@pytest.mark.parametrize("file", [*SOURCES, *PAGES], ids=lambda f: str(f.relative_to(ROOT)))
def test_phrases(file: Path) -> None:
    text = " ".join(prose(file).split())
    retired = PHRASES | WORDING
    found = {phrase for phrase in retired if re.search(phrase, text, re.IGNORECASE)}
    assert not found, {phrase: retired[phrase] for phrase in found}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_docstrings_begin_with_their_subject(file: Path) -> None:
    found = [text for text in docstrings(file.read_text(encoding="utf-8")) if OPENINGS.match(text)]
    assert not found


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
    module, constant = docstrings('"""Rows."""\nN = 1\n"""Of rows."""\n')
    assert OPENINGS.match(constant)
    assert not OPENINGS.match(module)


def docstrings(source: str) -> Iterator[str]:
    """Every string that stands as a statement: of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield text


def names(source: str) -> Iterator[str]:
    """Every name in a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string
