"""Names of fields, and what they were in version 1 of the format.

Documents of either version are read; new ones have the names of today. Fingerprints and digests are
made of the names of version 1, whatever a document calls its fields: so they are unchanged, and a
cache of version 1 stays valid.
"""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import AliasChoices

T = TypeVar("T")

FEATURE = {"max_length": "longest"}
CODING = {"vocab_size": "vocabulary", "samples": "draws"}
CODING_KINDS = {"samples": "draws"}
TEACHER = {"vocab_digest": "words"}
COMMIT = {"lengths": "places"}
"""The name of today -> that of version 1."""

SETTINGS = {
    "causal_lm": {
        "vocab_size": "vocabulary",
        "samples": "draws",
        "samples_log_probs": "draws_log_probs",
    }
}
"""The same of the settings of a teacher, by its kind: other kinds name theirs as they like."""


def either(name: str, names: Mapping[str, str]) -> AliasChoices:
    """The names under which a field is read: that of today and that of version 1."""
    return AliasChoices(name, names[name])


def of_today(document: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """A document with the names of today, whichever it has."""
    today = {old: new for new, old in names.items()}
    return {today.get(name, name): value for name, value in document.items()}


def of_version_1(document: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """A document with the names of version 1."""
    return {names.get(name, name): value for name, value in document.items()}
