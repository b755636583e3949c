"""Tokens of the wire as ids, against tokenizers' own encoding and decoding."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError
from armada.stages.precompute.remote.log_probs import Predictions, Tokens
from armada.stages.precompute.remote.responses import read_chat
from armada.stages.precompute.remote.token_ids import UnmappedTokenError, Vocabulary
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, SENTENCES, make_kind

BYTE_LEVEL = ("gpt2", "cl100k", "o200k", "digits", "bare", "previous")
GEMMA = "gemma"
LLAMA = "llama"


@cache
def tokenizer_of(kind: str) -> Any:
    """One of the tiny tokenizers with the decoder that published ones of its kind have."""
    from tokenizers import Tokenizer, decoders
    from transformers import PreTrainedTokenizerFast

    if kind in BYTE_LEVEL:
        tokenizer = make_kind(kind)
        tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    state = json.loads(KINDS["across"](SENTENCES).to_str())
    vocab = state["model"]["vocab"]
    first = len(vocab)
    vocab |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    state["model"] |= {"byte_fallback": True, "unk_token": None}
    backend = Tokenizer.from_str(json.dumps(state))
    strip = [decoders.Strip(" ", 1, 0)] if kind == LLAMA else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@cache
def vocabulary_of(kind: str) -> Vocabulary:
    return Vocabulary(tokenizer_of(kind))


def tokens_of(
    spelled: list[bytes] | None = None,
    strings: list[str] | None = None,
    ids: list[int] | None = None,
) -> Tokens:
    count = len(spelled or strings or ids or ())
    none: list[None] = [None] * count
    return Tokens(strings or [*none], spelled or [*none], ids or [*none])


def predicted(tokens: Tokens) -> Predictions:
    count = len(tokens)
    return Predictions(
        tokens,
        np.full(count, -1.0, np.float32),
        np.zeros(count, np.int64),
        Tokens(),
        np.zeros(0, np.float32),
    )


def encoded(kind: str, text: str) -> list[int]:
    return list(tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, GEMMA])
@given(text=st.one_of(st.text(), st.sampled_from(SENTENCES)))
def test_bytes_become_the_ids_that_encoding_gives(kind: str, text: str) -> None:
    vocabulary, ids = vocabulary_of(kind), encoded(kind, text)
    spelled = [vocabulary.spellings[token] for token in ids]
    wanted = text.replace("▁", " ") if kind == GEMMA else text
    assert b"".join(spelled) == wanted.encode()
    if not any("\ufffd".encode() in each for each in spelled):
        tokens = tokens_of(spelled=spelled)
        assert vocabulary.response_ids(predicted(tokens), wanted).tolist() == ids
        by_id = tokens_of(spelled=spelled, ids=ids)
        assert vocabulary.response_ids(predicted(by_id), wanted).tolist() == ids


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, GEMMA])
def test_every_token_spells_what_decoding_makes_of_it(kind: str) -> None:
    vocabulary, backend = vocabulary_of(kind), tokenizer_of(kind).backend_tokenizer
    assert len(vocabulary.spellings) == backend.get_vocab_size()
    whole = 0
    for token, spelled in vocabulary.spellings.items():
        decoded = backend.decode([token], skip_special_tokens=False)
        if "\ufffd" not in decoded:
            assert spelled.decode() == decoded
            whole += 1
    assert whole > 200


VISIBLE = st.characters(categories=["L", "N", "P", "S"], exclude_characters="\ufffd")


@given(text=st.text(VISIBLE, min_size=1), drop=st.integers(0, 30))
def test_a_reply_that_lacks_a_token_is_refused(text: str, drop: int) -> None:
    ids = encoded("gpt2", text)
    del ids[drop % len(ids)]
    with pytest.raises(UnmappedTokenError, match="left some out, or has another tokenizer"):
        vocabulary_of("gpt2").response_ids(predicted(tokens_of(ids=ids)), text)


def test_a_piece_goes_before_the_single_byte_and_an_added_token_before_both() -> None:
    vocabulary, tokenizer = vocabulary_of(GEMMA), tokenizer_of(GEMMA)
    vocab = tokenizer.get_vocab()
    found = vocabulary.ids(tokens_of(spelled=[b"a", b"\x00", b"\xd0", b"</s>"]))
    wanted = [vocab["a"], vocab["<0x00>"], vocab["<0xD0>"], tokenizer.eos_token_id]
    assert found.tolist() == wanted


def test_two_tokens_of_one_spelling_are_refused_without_an_id() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"▁": 0, " ": 1, "a": 2}, []))
    backend.decoder = decoders.Replace("▁", " ")
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert vocabulary.ids(tokens_of(spelled=[b"a"])).tolist() == [2]
    with pytest.raises(UnmappedTokenError, match=r"may be each of \[0, 1\].* need ids"):
        vocabulary.ids(tokens_of(spelled=[b" "]))
    assert vocabulary.ids(tokens_of(spelled=[b" "], ids=[1])).tolist() == [1]


def test_what_may_have_lost_a_space_needs_an_id() -> None:
    vocabulary, ids = vocabulary_of(LLAMA), encoded(LLAMA, " the red")
    spelled = [vocabulary.spellings[token] for token in ids]
    with pytest.raises(UnmappedTokenError, match="may have had a space in front"):
        vocabulary.ids(tokens_of(spelled=spelled))
    assert vocabulary.ids(tokens_of(spelled=spelled, ids=ids)).tolist() == ids
    cleaning = make_kind("gpt2")
    cleaning.backend_tokenizer.decoder = tokenizer_of("gpt2").backend_tokenizer.decoder
    cleaning.clean_up_tokenization_spaces = True
    with pytest.raises(UnmappedTokenError, match="may have had a space in front"):
        Vocabulary(cleaning).ids(tokens_of(strings=["."]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (tokens_of(ids=[3, 100_000]), "token 1 has id 100000.*no such token"),
        (tokens_of(ids=[-1]), "token 0 has id -1"),
        (tokens_of(spelled=[b"a", b"no such piece"]), "token 1, b'no such piece', is none of"),
        (tokens_of(strings=["a", "\ufffd"]), "token 1, .* part of a character"),
        (tokens_of(spelled=["\ufffd".encode()]), "token 0, .* part of a character"),
        (tokens_of(strings=["a\ufffd"]), "token 0, .* part of a character"),
        (tokens_of(spelled=[b""]), "token 0, b'', is not named by the server"),
        (Tokens(["a", None], [None, None], [None, None]), "token 1, None, is not named"),
    ],
)
def test_names_the_first_token_that_does_not_fit(tokens: Tokens, message: str) -> None:
    with pytest.raises(UnmappedTokenError, match=message):
        vocabulary_of("gpt2").ids(tokens)


def test_several_tokens_in_one_entry_are_refused() -> None:
    """As llama.cpp writes a character that is several tokens: the last one's id, and all bytes."""
    vocabulary, ids = vocabulary_of("gpt2"), encoded("gpt2", "🐦")
    assert len(ids) == 4
    with pytest.raises(UnmappedTokenError, match="several tokens in one entry"):
        vocabulary.ids(tokens_of(spelled=["🐦".encode()], ids=ids[-1:]))


def test_a_token_that_ends_a_text_may_have_no_bytes_beside_its_id() -> None:
    vocabulary, tokenizer = vocabulary_of("gpt2"), tokenizer_of("gpt2")
    end = tokenizer.eos_token_id
    assert vocabulary.ids(tokens_of(spelled=[b""], ids=[end])).tolist() == [end]
    with pytest.raises(UnmappedTokenError, match="another tokenizer"):
        vocabulary.ids(tokens_of(spelled=[b""], ids=[end + 1]))


def test_special_tokens_and_spaces_at_the_ends_may_be_missing_in_the_text() -> None:
    vocabulary = vocabulary_of("gpt2")
    ids = [1, *encoded("gpt2", " the red"), 1, *encoded("gpt2", " bird\n"), 1]
    for text in ("the red bird", " the red</s> bird\n", "the red bi", "", "the red bird\ufffd"):
        found = vocabulary.response_ids(predicted(tokens_of(ids=ids)), text)
        assert found.tolist() == ids
    for text in ("the red birds", "a red bird", "the red\ufffdbird"):
        with pytest.raises(UnmappedTokenError, match="and the text is"):
            vocabulary.response_ids(predicted(tokens_of(ids=ids)), text)


@pytest.mark.parametrize("kind", ["bert", "words", "clip", "bare"])
def test_tokenizers_without_bytes_of_their_own_are_refused(kind: str) -> None:
    tokenizer = make_kind(kind)
    if kind == "clip":
        tokenizer.backend_tokenizer.decoder = tokenizer_of("gpt2").backend_tokenizer.decoder
    with pytest.raises(JobError, match="no bytes of their own"):
        Vocabulary(tokenizer)


def test_the_most_probable_alternatives_stand_in_order() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([4, 0, 2, 5])
    ids = np.concatenate([rng.permutation(300)[:count] for count in counts])
    log_probs = rng.uniform(-9, -2, len(ids)).astype(np.float32)
    log_probs[4] = -np.inf
    tokens = tokens_of(ids=[1] * 4)
    predictions = Predictions(
        tokens, np.zeros(4, np.float32), counts, tokens_of(ids=ids.tolist()), log_probs
    )
    top_ids, top_log_probs = vocabulary_of("gpt2").top_k(predictions, 3)
    start = 0
    for row, count in enumerate(counts):
        pairs = sorted(
            zip(log_probs[start : start + count], ids[start : start + count], strict=True),
            reverse=True,
        )
        wanted = [(value, token) for value, token in pairs[:3] if value > -np.inf]
        wanted += [(-np.inf, 0)] * (3 - len(wanted))
        assert list(zip(top_log_probs[row], top_ids[row], strict=True)) == wanted
        start += count
    assert top_log_probs.dtype == np.float32


def test_an_alternative_that_comes_twice_is_refused() -> None:
    predictions = Predictions(
        tokens_of(ids=[5, 6]),
        np.zeros(2, np.float32),
        np.array([1, 2]),
        tokens_of(ids=[7, 7, 7]),
        np.full(3, -1.0, np.float32),
    )
    with pytest.raises(UnmappedTokenError, match="two alternatives of token 1 have the id 7"):
        vocabulary_of("gpt2").top_k(predictions, 2)


def test_no_tokens_have_no_ids() -> None:
    vocabulary = vocabulary_of("gpt2")
    assert vocabulary.response_ids(predicted(Tokens()), "").shape == (0,)
    ids, log_probs = vocabulary.top_k(predicted(Tokens()), 3)
    assert ids.shape == log_probs.shape == (0, 3)


def test_reads_a_whole_chat() -> None:
    """From the wire to ids, with a character of two tokens that the server spells in bytes."""
    vocabulary, ids = vocabulary_of("gpt2"), encoded("gpt2", "café")
    entries = [
        {"token": "x", "bytes": list(vocabulary.spellings[token]), "logprob": -0.5} for token in ids
    ]
    content = [entry | {"top_logprobs": [entry]} for entry in entries]
    message = {"role": "assistant", "content": "café"}
    choice = {"index": 0, "message": message, "logprobs": {"content": content}}
    (read,) = read_chat({"choices": [choice]})
    assert read.predictions is not None
    assert vocabulary.response_ids(read.predictions, read.text).tolist() == ids
    assert vocabulary.top_k(read.predictions, 1)[0][:, 0].tolist() == ids
