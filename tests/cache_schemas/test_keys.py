"""Example keys, against BLAKE2b written out from RFC 7693 and against keys made by `b2sum`."""

from collections.abc import Sequence

import numpy as np
import pytest
from armada.cache_schemas.keys import example_key, first_occurrences, key_words, keys_to_array
from hypothesis import given
from hypothesis import strategies as st

SEGMENTS = st.lists(st.text(max_size=12), max_size=4)

KNOWN = {
    "cae66941d9efbd404e4d88758ea67670": [],
    "c804ce198ec337e3dc762bdd1a09aece": [""],
    "fc9c942180a48b1bfa36938828a429dc": ["a"],
    "10366aba46518e2b9d040dde242bbc5a": ["abc"],
    "4826ed043ab3cdec576d8541fa5d5a80": ["ab", "c"],
    "f14abc19c330e936bb9c8506d69bac9b": ["a", "bc"],
    "8553b3d37f2d28d727639de9a0e7dae6": ["abc", ""],
    "60501920bf85f8bc48bf0ae4e3e90948": ["Grüße, Welt"],
    "ea9f77374de02411e08d2145b2d082d5": ["日本"],
    "fd526d7f76d4063339e209eb5aea4e43": ["x" * 200],
}
"""Keys of segment lists, computed with `b2sum -l 128` of length-prefixed bytes."""

MASK = 2**64 - 1
IV = (
    *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
    *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
)
SIGMA = (
    *("0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8"),
    *("905724afe1bc683d", "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a"),
    *("6fe9b308c2d714a5", "a2847615fb9e3cd0", "0123456789abcdef", "ea489fd61c02b753"),
)
LANES = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)


def blake2b(data: bytes, size: int) -> bytes:
    """RFC 7693, section 3, without key."""
    h = [IV[0] ^ 0x01010000 ^ size, *IV[1:]]
    blocks = [data[i : i + 128] for i in range(0, len(data), 128)] or [b""]
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        m = np.frombuffer(block.ljust(128, b"\0"), dtype="<u8").tolist()
        v = [*h, *IV]
        v[12] ^= len(data) if last else (number + 1) * 128
        v[14] ^= MASK if last else 0
        for row in SIGMA:
            order = [int(digit, 16) for digit in row]
            for lane, (a, b, c, d) in enumerate(LANES):
                for word, turns in (
                    (m[order[2 * lane]], (32, 24)),
                    (m[order[2 * lane + 1]], (16, 63)),
                ):
                    v[a] = (v[a] + v[b] + word) & MASK
                    v[d] = rotated(v[d] ^ v[a], turns[0])
                    v[c] = (v[c] + v[d]) & MASK
                    v[b] = rotated(v[b] ^ v[c], turns[1])
        h = [h[i] ^ v[i] ^ v[i + 8] for i in range(8)]
    return b"".join(word.to_bytes(8, "little") for word in h)[:size]


def rotated(word: int, right: int) -> int:
    return (word >> right | word << (64 - right)) & MASK


def independent_key(segments: Sequence[str]) -> bytes:
    data = b"".join(len(s.encode()).to_bytes(8, "little") + s.encode() for s in segments)
    return blake2b(data, 16)


@pytest.mark.parametrize(
    ("key", "segments"), KNOWN.items(), ids=[repr(s)[:20] for s in KNOWN.values()]
)
def test_key_is_the_known_one(key: str, segments: list[str]) -> None:
    assert example_key(segments).hex() == key
    assert independent_key(segments).hex() == key


@given(SEGMENTS)
def test_key_is_that_of_the_rfc(segments: list[str]) -> None:
    assert example_key(segments) == independent_key(segments)


def test_bare_string_is_one_segment() -> None:
    assert example_key("abc") == example_key(["abc"]) == example_key(("abc",))


@given(SEGMENTS, SEGMENTS)
def test_keys_are_equal_only_for_equal_segments(one: list[str], other: list[str]) -> None:
    assert (example_key(one) == example_key(other)) == (one == other)


@given(st.text(min_size=1, max_size=20), st.data())
def test_where_a_text_is_cut_matters(text: str, data: st.DataObject) -> None:
    cuts = st.integers(0, len(text))
    one, other = data.draw(cuts), data.draw(cuts)
    same = example_key([text[:one], text[one:]]) == example_key([text[:other], text[other:]])
    assert same == (one == other)


def test_unicode_is_not_normalised() -> None:
    assert example_key("é") != example_key("e\N{COMBINING ACUTE ACCENT}")


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_words_sort_as_the_bytes_do(keys: list[bytes]) -> None:
    high, low = key_words(keys_to_array(keys))
    words = list(zip(high.tolist(), low.tolist(), strict=True))
    assert words == [(int.from_bytes(k[:8]), int.from_bytes(k[8:])) for k in keys]
    assert sorted(range(len(keys)), key=words.__getitem__) == sorted(
        range(len(keys)), key=keys.__getitem__
    )


# Few different bytes, so that keys repeat and share their first or second half.
SOME_KEYS = st.lists(
    st.tuples(st.sampled_from(b"ab"), st.sampled_from(b"ab")).map(
        lambda pair: bytes([pair[0]] * 8 + [pair[1]] * 8)
    ),
    max_size=12,
)


@given(SOME_KEYS)
def test_first_occurrences_are_those_of_a_dictionary(keys: list[bytes]) -> None:
    seen: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        seen.setdefault(key, position)
    assert first_occurrences(keys_to_array(keys)).tolist() == list(seen.values())
