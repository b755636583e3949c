"""Points where a text may be cut so that all tokens before the cut stay the same.

A point is a character of `before` followed by one of `after`, such as a letter and a space. That
the text splits there is read from the tokenizer, never tried: every step of it, as its own document
lists them, either works character by character from the left, or is a pattern of which no match can
look across such a position; and the model sees the two sides apart, or has no token with both. A
step that is not known to do so has no such positions, and texts are then not cut.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

LOWER = "abcdefghijklmnopqrstuvwxyz"
_RANGES = ((0x3B1, 0x3C9), (0x430, 0x438), (0x43A, 0x44F), (0x5D0, 0x5EA), (0x628, 0x63A))
IDEOGRAPHS = "".join(map(chr, range(0x4E00, 0x9FA6)))
_LETTERS = LOWER + "".join(chr(n) for first, last in _RANGES for n in range(first, last + 1))
"""Lower-case Latin, Greek, Cyrillic, Hebrew and Arabic letters without decomposition."""

DIGITS, SPACE_SIGN = "0123456789", "▁"
MARKS = "，。、！？；："  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Parting:
    """A kind of split point; `sample` has one in its middle."""

    before: frozenset[str]
    after: str
    parting: frozenset[str]
    """Pre-tokenizers that split any text there."""

    @property
    def seen_after(self) -> str:
        """`after`, and what normalizers make of it."""
        folded = unicodedata.normalize("NFKC", self.after)
        return self.after + folded + (SPACE_SIGN if " " in self.after else "")

    @property
    def sample(self) -> str:
        """The shortest text with such a point, and something after it."""
        return f"{min(self.before)}{self.after[0]}{min(self.before)}"

    def find(self, text: str, start: int) -> int | None:
        """The first point in a text at or after `start` characters."""
        pattern = re.compile(f"(?=[{self.after}])")
        found = (match.start() for match in pattern.finditer(text, max(start, 1)))
        return next((position for position in found if text[position - 1] in self.before), None)


_AT_SPACES = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace"})
PARTINGS = (
    Parting(frozenset(_LETTERS + IDEOGRAPHS), " ", _AT_SPACES),
    Parting(frozenset(LOWER), DIGITS, frozenset({"Digits"})),
    Parting(
        frozenset(LOWER + IDEOGRAPHS),
        MARKS + ",;:!?/+=",
        frozenset({"BertPreTokenizer", "Whitespace", "Punctuation"}),
    ),
)

FROM_THE_LEFT = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"}
    | {"Strip", "StripAccents", "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
    | {"Punctuation", "Digits", "Metaspace"}
)
"""Steps that treat characters, or graphemes, one by one."""


def partings(tokenizer: Any) -> list[Parting]:
    """The kinds of points at which a tokenizer splits texts; none for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "truncation_side", "right") != "right":
        return []
    document = json.loads(backend.to_str())
    return [kind for kind in PARTINGS if _parts(backend, document, kind)]


def _parts(backend: Any, document: dict[str, Any], kind: Parting) -> bool:
    if any(_spans(token, kind) for token in document["added_tokens"]):
        return False
    pieces = _pieces(backend, kind.sample)
    pre_tokenizers = list(steps_of(document["pre_tokenizer"]))
    steps = [*steps_of(document["normalizer"]), *pre_tokenizers]
    if not all(_is_local(step, kind, "".join(pieces)) for step in in_characters(steps)):
        return False
    apart = any(_always_parts(step, kind) for step in pre_tokenizers) and len(pieces) > 1
    return apart or _model_parts(document["model"], kind, "".join(pieces))


def in_characters(steps: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The steps; a pattern that would see bytes instead of characters as one of unknown type."""
    in_bytes = False
    for step in steps:
        yield {"type": "of bytes"} if in_bytes and "pattern" in step else step
        in_bytes = in_bytes or step["type"] == "ByteLevel"


def _spans(token: dict[str, Any], kind: Parting) -> bool:
    """Whether an added token could span a point, or depend on what follows it."""
    content = token["content"].lower()
    across = any(
        (one.isalnum() or one in kind.before) and (two.isspace() or two in kind.after)
        for one, two in pairwise(content)
    )
    return across or (token["single_word"] and kind.after != " ")


def _pieces(backend: Any, text: str) -> list[str]:
    """A text as the model gets it."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def steps_of(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer without its sequences."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for part in component.get("normalizers") or component.get("pretokenizers") or ():
        yield from steps_of(part)


def _is_local(step: dict[str, Any], kind: Parting, seen: str) -> bool:
    """Whether a step's result for the characters before a point is the same without the rest."""
    if step["type"] in FROM_THE_LEFT:
        return step["type"] != "ByteLevel" or "use_regex" in step  # else bytes come first
    if step["type"] not in ("Split", "Replace"):
        return False
    pattern = step["pattern"]
    if "Regex" in pattern:
        return step.get("behavior") != "MergedWithPrevious" and is_local(pattern["Regex"], kind)
    text = pattern["String"]
    joins = step.get("behavior") == "MergedWithPrevious" and text in seen
    return not joins and not any(character.isalnum() for character in text)


def _always_parts(step: dict[str, Any], kind: Parting) -> bool:
    if step["type"] in kind.parting:
        return bool(step.get("split", True))
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    regex = step.get("pattern", {}).get("Regex") if step["type"] == "Split" else None
    apart = step.get("behavior") in ("Isolated", "Removed")
    return regex is not None and apart and takes_all(regex, kind)


def vocabulary_of(model: dict[str, Any]) -> list[str]:
    """The words of a model's document."""
    vocabulary = model["vocab"]
    return [word for word, _ in vocabulary] if isinstance(vocabulary, list) else list(vocabulary)


def _model_parts(model: dict[str, Any], kind: Parting, seen: str) -> bool:
    """Whether a model that is given both sides at once still has no token across a space."""
    if kind.after != " " or model["type"] not in ("BPE", "Unigram") or model.get("ignore_merges"):
        return False
    words = vocabulary_of(model)
    space = seen[seen.rindex(min(kind.before)) - 1]
    across = re.compile(f"[^{re.escape(space)}]{re.escape(space)}")
    return (
        space in words  # two unknown characters may be made one token
        and not model.get("dropout")
        and not model.get("end_of_word_suffix")
        and not any(across.search(word) for word in words)
    )


_ATOM = re.compile(
    r"\\[pP]\{\^?\w+\}|\\[A-Za-z]|\\[^A-Za-z0-9]|\[(?:\\.|[^\[\]\\&]|&(?!&))+\]|[^\\\[\]().^$|*+?{}]"
)
_GROUP = re.compile(r"\((?:\?i?:|(?!\?))")
_QUANTIFIER = re.compile(r"[*+?]\+?|\{\d+(?:,\d*)?\}")
_AT_WORD = r"(?!\S)"
_ANCHORS = frozenset({r"\A", r"\Z", r"\z", r"\G", r"\b", r"\B", r"\K", r"\R", r"\X"})


@dataclass(frozen=True, slots=True)
class Atom:
    """One character of a pattern, or a set of them; `needed`: it has to match; `many`: as often as
    it can."""

    pattern: str
    needed: bool
    many: bool

    def matches(self, characters: str, flags: str = "") -> int:
        """Number of characters it matches, by the library's own rules."""
        from tokenizers import Regex, normalizers

        pattern = Regex(f"(?{flags}:{self.pattern})")
        return len(characters) - len(normalizers.Replace(pattern, "").normalize_str(characters))


def is_local(regex: str, kind: Parting) -> bool:
    """Whether no match of a pattern that begins before a point looks beyond it."""
    found = alternatives(regex)
    return found is not None and all(_stays(atoms, kind) for atoms in found)


def takes_all(regex: str, kind: Parting) -> bool:
    """Whether every character before a point is in some match: one of the alternatives needs
    nothing else."""
    before = "".join(sorted(kind.before))
    for atoms in alternatives(regex) or ():
        needed = [atom for atom in atoms if atom.needed]
        if len(needed) == 1 and needed[0].matches(before) == len(before):
            return True
    return False


def _stays(atoms: list[Atom], kind: Parting) -> bool:
    """Whether no atom matches what follows a point after one that matches what is before it."""
    before, entered = "".join(sorted(kind.before)), False
    for atom in atoms:
        entered = entered or atom.matches(before, "i") > 0
        if entered and atom.matches(kind.seen_after, "i"):
            return False
    return True


def alternatives(regex: str) -> list[list[Atom]] | None:
    """The atoms of each alternative in order, those of groups among them; None for a pattern of
    which more would have to be known."""
    found: list[list[Atom]] = [[]]
    groups, position = list[int](), 0
    while position < len(regex):
        if regex.startswith(_AT_WORD, position) and found[-1] and found[-1][-1].pattern == r"\s":
            position += len(_AT_WORD)
        elif group := _GROUP.match(regex, position):
            position = group.end()
            groups.append(len(found[-1]))
        elif regex[position] == ")" and groups:
            start, position = groups.pop(), position + 1
            if regex.startswith(("*", "+", "{"), position):
                return None
            if regex.startswith("?", position):
                position += 1
                found[-1][start:] = [replace(atom, needed=False) for atom in found[-1][start:]]
        elif regex[position] == "|":
            position += 1
            if not groups:
                found.append([])
        elif (atom := _ATOM.match(regex, position)) and atom.group() not in _ANCHORS:
            times = _QUANTIFIER.match(regex, atom.end())
            position = times.end() if times else atom.end()
            often = times.group() if times else ""
            many = often[:1] in ("*", "+") or often.endswith(",}")
            found[-1].append(Atom(atom.group(), often[:1] not in ("*", "?"), many))
        else:
            return None
    return None if groups else found
