"""Rows of a language model's batches, against the same made token by token in plain Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.codings import SamplesCoding, TopKCoding
from armada.cache_schemas.errors import CacheError, JobError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.distill.language.batches import Counts, PackedTexts, one_each, pack, packed
from armada.stages.distill.language.teachers import (
    CachedAnswers,
    MatchedTokens,
    TeacherTokens,
    as_answers,
    match,
)
from armada.stages.distill.token_loss.answers import DenseAnswers, SampledAnswers, SparseAnswers
from armada.stages.distill.token_loss.settings import TokenLossSettings
from armada.stages.language.tokens import INSIDE, TokenTexts
from armada.stages.ragged import Ragged, joined
from armada.stages.store.codec.samples import encode_samples
from armada.stages.store.codec.top_k import encode_top_k
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from small_caches import keys_of, make_manifest, numbered_texts

PAD = 7
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=12)


def make_texts(lengths: list[int], prompts: list[int] | None = None) -> TokenTexts:
    """Texts with ids that tell which text and which place they are of."""
    parts = [np.arange(n, dtype=np.int32) + 100 * (text + 1) for text, n in enumerate(lengths)]
    return TokenTexts(
        ids=np.concatenate(parts),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompts=np.array(prompts or [1] * len(lengths)),
        truncated=np.zeros(len(lengths), dtype=bool),
        bytes=np.array(lengths) * 3,
    )


@given(lengths=LENGTHS, most=st.integers(12, 40))
@settings(max_examples=80, deadline=None)
def test_every_text_is_in_one_row_that_holds_it(lengths: list[int], most: int) -> None:
    packs = packed(np.array(lengths), most)
    assert sorted(packs.texts.tolist()) == list(range(len(lengths)))
    rows = np.split(packs.texts, packs.offsets[1:-1])
    totals = [sum(lengths[text] for text in row) for row in rows]
    assert max(totals) <= most
    assert all(list(row) == sorted(row) for row in rows)
    # No two rows could have shared one: the best fit of the smaller would have been the other.
    small = sorted(totals)[:2]
    assert len(small) < 2 or sum(small) > most


def _plain(texts: TokenTexts, rows: list[list[int]]) -> dict[str, list[Any]]:
    """Indices and words of a batch, token by token."""
    width = -(-max(sum(len(texts.of(t)) for t in row) for row in rows) // 8) * 8
    ids, at, words, mask, positions = [], [], [], [], []
    for number, row in enumerate(rows):
        line = [PAD] * width
        seen = [0] * width
        counted = [0] * width
        start = 0
        for text in row:
            for place, token in enumerate(texts.of(text).tolist()):
                line[start + place], seen[start + place] = token, 1
                counted[start + place] = place
                if place >= texts.prompts[text]:
                    at.append(number * width + start + place - 1)
                    words.append(token)
            start += len(texts.of(text))
        ids.append(line)
        mask.append(seen)
        positions.append(counted)
    return {
        "input_ids": ids,
        "predicted_at": at,
        "targets": words,
        "attention_mask": mask,
        "position_ids": positions,
    }


@pytest.mark.parametrize("packing", ["none", "document_mask", "concat"])
@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_batch_is_what_it_is_token_by_token(
    packing: Any, lengths: list[int], data: st.DataObject
) -> None:
    prompts = [data.draw(st.integers(1, n)) for n in lengths]
    texts = make_texts(lengths, prompts)
    rows = pack(texts, packing, 24, PAD)
    chosen = np.array(
        data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4, unique=True))
    )
    batch = rows.pad(chosen)
    members = [rows.packs.texts[rows.packs.offsets[r] : rows.packs.offsets[r + 1]] for r in chosen]
    expected = _plain(texts, [list(row) for row in members])
    for name in expected.keys() & batch.keys():
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)
    assert ("position_ids" in batch) == (packing == "document_mask")
    assert ("attention_mask" in batch) == (packing != "document_mask")
    assert rows.counts(chosen) == Counts(len(expected["targets"]))
    assert rows.bytes_of(chosen) == 3 * sum(lengths[t] for row in members for t in row)
    lengths_of_rows = np.diff(rows.offsets)[chosen]
    assert lengths_of_rows.tolist() == [sum(lengths[t] for t in row) for row in members]


def test_a_text_is_pooled_where_its_answer_begins() -> None:
    with_prompts = pack(make_texts([5, 3, 4], [3, 2, 4]), "none", 8, PAD, prompted=True)
    assert with_prompts.pad(np.array([0, 1, 2]))["pooled_at"].tolist() == [2, 9, 19]
    without = pack(make_texts([5, 3]), "none", 8, PAD)
    assert without.pad(np.array([1, 0]))["pooled_at"].tolist() == [2, 12]


K, WORDS = 3, 50
CODING = TopKCoding(k=K, vocab_size=WORDS, bits=16, temperatures=(1.0, 2.0))
SAMPLES = SamplesCoding(samples=4, vocab_size=WORDS)
ALONG: dict[str, Any] = {"axis": "predictions", "max_length": 32}
FEATURES = (
    FeatureSpec(name="top_k", shape=(CODING.row_bytes,), dtype="uint8", coding=CODING, **ALONG),
    FeatureSpec(name="samples", shape=(SAMPLES.row_bytes,), dtype="uint8", coding=SAMPLES, **ALONG),
    FeatureSpec(name="dense", shape=(WORDS,), dtype="float32", **ALONG),
)
CACHED = [4, 0, 9, 2, 6]
"""Predictions of five cached texts; in the cache they lie in another order."""


def _dense(text: int) -> np.ndarray[Any, Any]:
    logits = np.random.default_rng(text).standard_normal((CACHED[text], WORDS)).astype("f4")
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _coded(text: int) -> dict[str, np.ndarray[Any, Any]]:
    dense = _dense(text)
    ids = np.argsort(-dense, axis=1)[:, :K]
    top = np.take_along_axis(dense, ids, axis=1)
    tails = np.stack([np.log1p(-np.exp(top).sum(1)), np.full(len(top), -0.5)], axis=1)
    drawn = np.random.default_rng([text, 1]).integers(0, WORDS, (len(dense), 4))
    return {
        "top_k": encode_top_k(CODING, ids, top, tails),
        "samples": encode_samples(SAMPLES, drawn, None),
        "dense": dense,
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("answers") / "cache"
    order = [3, 0, 4, 2, 1]
    names = numbered_texts(0, 5)
    with CacheWriter(path, make_manifest(FEATURES, rows_per_shard=64)) as writer:
        for part in (order[:2], order[2:]):
            features: dict[str, Ragged] = {
                spec.name: joined([_coded(t)[spec.name] for t in part], spec.shape, spec.dtype)
                for spec in FEATURES
            }
            keys = keys_of([names[t] for t in part])
            writer.commit(keys, features, np.zeros(len(part), dtype=bool))
    opened = open_cache(path)
    return opened, opened.lookup(names)


def _rows(cache: Any, feature: str, lengths: list[int], packing: Any = "none") -> PackedTexts:
    opened, rows = cache
    answers = CachedAnswers(opened.ragged(feature), 1.0, "bucket")
    return pack(make_texts(lengths), packing, 32, PAD, {"llm": TeacherTokens(answers, rows)})


@pytest.mark.parametrize("packing", ["none", "concat"])
def test_answers_stand_at_their_predictions(cache: Any, packing: Any) -> None:
    rows = _rows(cache, "dense", [n + 1 for n in CACHED], packing)
    for order in ([0, 1], [1, 0]) if packing == "concat" else ([4, 0, 1, 2, 3], [2]):
        chosen = np.array([r for r in order if r < len(rows)])
        batch = rows.pad(chosen)
        texts = rows._texts_of(chosen)
        expected = np.concatenate([_dense(text) for text in texts])
        np.testing.assert_array_equal(batch["answers"]["llm"]["dense"], expected)
        assert "answered" not in batch["answers"]["llm"]
        assert rows.counts(chosen) == Counts(len(expected), {"llm": len(expected)})


def test_texts_that_are_longer_or_shorter_than_they_were_to_the_teacher(cache: Any) -> None:
    lengths = [CACHED[0] + 1, 6, 4, CACHED[3] + 3, CACHED[4] + 1]
    rows = _rows(cache, "dense", lengths)
    chosen = np.arange(5)
    said = rows.pad(chosen)["answers"]["llm"]
    start = 0
    for text, length in enumerate(lengths):
        known = min(length - 1, CACHED[text])
        part = slice(start, start + length - 1)
        np.testing.assert_array_equal(said["dense"][part][:known], _dense(text)[:known])
        assert said["answered"][part].tolist() == [n < known for n in range(length - 1)]
        start += length - 1
    assert rows.counts(chosen).answered == {"llm": int(said["answered"].sum())}


@pytest.mark.parametrize("feature", ["dense", "top_k"])
def test_texts_that_are_not_in_the_cache(cache: Any, feature: str) -> None:
    opened, rows = cache
    lengths = [n + 1 for n in CACHED]
    lacking = rows.copy()
    lacking[[0, 4]] = -1
    whole = _rows(cache, feature, lengths).pad(np.arange(5))["answers"]["llm"]
    some = _rows((opened, lacking), feature, lengths)
    said = some.pad(np.arange(5))["answers"]["llm"]
    known = np.repeat(lacking >= 0, CACHED)
    assert said.pop("answered").tolist() == known.tolist()
    for name, values in said.items():
        torch.testing.assert_close(values[known], whole[name][known], rtol=0, atol=0)
    assert some.counts(np.arange(5)) == Counts(sum(CACHED), {"llm": int(known.sum())})
    none = some.pad(np.array([0]))["answers"]["llm"]
    assert not none["answered"].any()


def _read(cache: Any, feature: str, temperature: float, tail: Any) -> Any:
    """All predictions of all texts."""
    opened, rows = cache
    answers = CachedAnswers(opened.ragged(feature), temperature, tail)
    return as_answers(
        answers.read(rows, np.concatenate([np.arange(n) for n in CACHED]), np.array(CACHED))
    )


def test_each_feature_is_decoded_as_what_it_is(cache: Any) -> None:
    top = _read(cache, "top_k", 1.0, "bucket")
    assert isinstance(top, SparseAnswers)
    assert top.log_tail_P is not None
    dense = np.concatenate([_dense(text) for text in range(5)])
    best = np.sort(dense, axis=1)[:, ::-1][:, :K]
    np.testing.assert_allclose(top.log_probs_Pk, best, atol=2e-3)
    alone = _read(cache, "top_k", 3.0, "renormalised")
    assert isinstance(alone, SparseAnswers)
    assert alone.log_tail_P is None
    np.testing.assert_allclose(alone.log_probs_Pk.exp().sum(1), 1, atol=1e-4)
    drawn = _read(cache, "samples", 1.0, "bucket")
    assert isinstance(drawn, SampledAnswers)
    assert drawn.ids_PK.shape == (sum(CACHED), 4)
    whole = _read(cache, "dense", 1.0, "bucket")
    assert isinstance(whole, DenseAnswers)
    np.testing.assert_array_equal(whole.log_probs_PV, dense)


@pytest.mark.parametrize(
    ("feature", "tail"), [("top_k", "bucket"), ("top_k", "renormalised"), ("dense", "bucket")]
)
def test_a_temperature_for_each_token(cache: Any, feature: str, tail: Any) -> None:
    """By the teacher's certainty in 30 parts, each decoded as at that temperature alone."""
    opened, rows = cache
    at = np.concatenate([np.arange(n) for n in CACHED])
    temperatures = ((3.0, 1.0, 2.0) if tail == "renormalised" else (2.0, 1.0, 2.0)) * 10
    answers = CachedAnswers(opened.ragged(feature), 1.0, tail, temperatures)
    found = as_answers(answers.read(rows, at, np.array(CACHED)))
    assert not isinstance(found, SampledAnswers)
    one = _read(cache, feature, 1.0, tail)
    log_p = one.log_probs_PV if feature == "dense" else one.log_probs_Pk
    p = log_p.double().exp()
    if feature == "top_k" and tail == "bucket":
        p = torch.cat([p, one.log_tail_P.double().exp()[:, None]], dim=1)
    certainty = 1 + torch.special.xlogy(p, p).sum(1) / np.log(p.shape[1])
    expected = torch.tensor(temperatures)[(30 * certainty).long().clamp(0, 29)]
    assert torch.equal(found.temperatures_P, expected)
    assert len(expected.unique()) > 1
    if feature == "dense":
        assert torch.equal(found.log_probs_PV, one.log_probs_PV)
        return
    for temperature in set(temperatures):
        alone, which = _read(cache, feature, temperature, tail), expected == temperature
        assert torch.equal(found.ids_Pk, alone.ids_Pk)
        assert torch.equal(found.log_probs_Pk[which], alone.log_probs_Pk[which])
        if tail == "bucket":
            assert torch.equal(found.log_tail_P[which], alone.log_tail_P[which])


def test_what_answers_cannot_give_is_refused_before_training(cache: Any) -> None:
    opened, _ = cache
    top, samples = opened.ragged("top_k"), opened.ragged("samples")
    jsd, reverse = (TokenLossSettings(divergence=name) for name in ("jsd", "reverse_kl"))
    CachedAnswers(top, 2.0, "bucket").check(jsd, False, WORDS)
    with pytest.raises(CacheError, match="not known at 4"):
        CachedAnswers(top, 4.0, "bucket").check(jsd, False, WORDS)
    with pytest.raises(CacheError, match="not known at 4"):
        CachedAnswers(top, 1.0, "bucket", (1.0, 4.0)).check(jsd, False, WORDS)
    with pytest.raises(JobError, match="token_temperatures: need all of a distribution"):
        CachedAnswers(samples, 1.0, "bucket", (1.0, 2.0)).check(TokenLossSettings(), False, WORDS)
    CachedAnswers(top, 4.0, "renormalised").check(jsd, False, WORDS)
    with pytest.raises(JobError, match="which are not cached"):
        CachedAnswers(samples, 1.0, "bucket").check(reverse, False, WORDS)
    with pytest.raises(JobError, match="samples do not give"):
        CachedAnswers(samples, 1.0, "bucket").check(TokenLossSettings(), True, WORDS)
    for name in ("top_k", "samples", "dense"):
        answers = CachedAnswers(opened.ragged(name), 1.0, "bucket")
        with pytest.raises(
            CacheError, match=f"of {WORDS} tokens is not what a teacher of 49 tokens"
        ):
            answers.check(TokenLossSettings(), False, WORDS - 1)


def _with_read(texts: TokenTexts, read: list[list[int]]) -> TokenTexts:
    flat = np.concatenate([np.array(each, dtype=np.uint32) for each in read])
    return TokenTexts(texts.ids, texts.offsets, texts.prompts, texts.truncated, texts.bytes, flat)


def test_predictions_are_matched_where_both_have_read_the_same(tmp_path: Path) -> None:
    spec = FeatureSpec(name="characters_read", shape=(), dtype="uint32", **ALONG)
    dense = FEATURES[2]
    theirs = [[0, 3, INSIDE, 7], [0, 2, 5]]
    with CacheWriter(tmp_path / "cache", make_manifest([spec, dense])) as writer:
        numbers = [np.full((len(each), WORDS), n, "f4") for n, each in enumerate(theirs)]
        for n, part in enumerate(numbers):
            part += np.arange(len(part))[:, None] / 10
            assert part[0, 0] == n
        features = {
            "characters_read": joined([np.array(t, "u4") for t in theirs], (), "uint32"),
            "dense": joined(numbers, (WORDS,), "float32"),
        }
        writer.commit(keys_of(["a", "b"]), features, np.zeros(2, dtype=bool))
    cache = open_cache(tmp_path / "cache")
    ours = [[INSIDE, 0, 2, 3, INSIDE, 7], [INSIDE, 1, 5]]
    texts = _with_read(make_texts([6, 3]), ours)
    answers = CachedAnswers(cache.ragged("dense"), 1.0, "bucket")
    found = match(answers, np.array([0, 1]), texts, cache.ragged("characters_read"))
    assert isinstance(found, MatchedTokens)
    assert found.ours.tolist() == [0, 2, 4, 1]
    assert found.theirs.tolist() == [0, 1, 3, 2]
    rows = pack(texts, "none", 8, PAD, {"llm": found})
    said = rows.pad(np.array([1, 0]))["answers"]["llm"]
    assert said["answered"].tolist() == [False, True, True, False, True, False, True]
    told = said["dense"][said["answered"], 0]
    torch.testing.assert_close(told, torch.tensor([1.2, 0.0, 0.1, 0.3]))
    assert rows.counts(np.array([0, 1])) == Counts(7, {"llm": 4})
    one = match(answers, np.array([-1, 1]), texts, cache.ragged("characters_read"))
    assert (one.ours.tolist(), one.theirs.tolist()) == ([1], [2])
    said = pack(texts, "none", 8, PAD, {"llm": one}).pad(np.array([1, 0]))["answers"]["llm"]
    assert said["answered"].tolist() == [False, True, *[False] * 5]


def test_one_row_for_each_text() -> None:
    assert one_each(3).texts.tolist() == [0, 1, 2]
    assert len(one_each(0)) == 0
