"""Every message on the page of troubleshooting is one that the product says."""

import re

import pytest
from docs_pages import ROOT
from product_messages import messages

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
FRAGMENTS = [entry.strip("`") for entry in ENTRIES]


def is_said(fragment: str) -> bool:
    return any(fragment in part for part in messages())


def test_entries_are_fragments() -> None:
    assert len(ENTRIES) >= 20
    assert len(set(ENTRIES)) == len(ENTRIES)
    assert [entry for entry in ENTRIES if not re.fullmatch(r"`[^`]{8,}`", entry)] == []


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_message_has_the_fragment(fragment: str) -> None:
    assert is_said(fragment)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_an_entry_says_more_than_its_message(fragment: str) -> None:
    _, _, rest = PAGE.partition(f"### `{fragment}`\n")
    text = rest.partition("\n#")[0]
    said_here = re.sub(r"\*`.*?`\*", "", text, flags=re.DOTALL)  # the message as it is printed
    assert len(said_here.split()) >= 8


@pytest.mark.parametrize(
    "fragment",
    [
        "Every error that armada raises on purpose",  # a docstring
        "passes over the training set",  # the description of a key
        " rows were skipped",  # a warning
        "expected seconds",  # nothing but words of the code
        "holds a run of another jobs",  # nearly said
    ],
)
def test_what_no_error_says_is_not_found(fragment: str) -> None:
    assert not is_said(fragment)


def test_parts_end_where_something_is_filled_in() -> None:
    assert is_said("holds a run of another job: ")
    assert is_said("; it holds ")
    assert not is_said("is the prefix of several teachers; it holds")
