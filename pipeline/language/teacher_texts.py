"""Checks that the texts of a run equal those of the token teacher, token by token."""

from typing import Any

import numpy as np

from ...cache_schemas.errors import CacheError, JobError
from ...cache_schemas.features import GENERATED_IDS
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.corpus import Corpus
from ...stages.distill.language.teachers import CachedAnswers, MatchedTokens, match
from ...stages.language.tokens import Ids, TokenTexts, tokenizer_digest, vocab_digest
from ...stages.ragged import arange_each
from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import RaggedArray
from ...stages.store.reading.reader import Cache

_BLOCK = 4096
"""Texts whose tokens are compared at once."""


def check_tokenizer(teacher: TeacherSpec, tokenizer: Any, cross_tokenizer: bool) -> None:
    """Refuse a teacher whose vocabulary differs from the student's, unless `cross_tokenizer` is
    set. `check_same_tokens` checks that both tokenize alike."""
    theirs, ours = teacher.settings["tokenizer"], tokenizer_digest(tokenizer)
    if cross_tokenizer and theirs == ours:
        raise JobError("cross_tokenizer: teacher and student have the same tokenizer; leave it out")
    if cross_tokenizer or theirs == ours:
        return
    if teacher.vocab_digest != vocab_digest(tokenizer, teacher_vocab_size(teacher)):
        raise JobError(
            f"tokenizer: the teacher's is {theirs}, the student's {ours}: their tokens differ; use "
            "a student of the teacher's family, or cross_tokenizer=true"
        )


def teacher_vocab_size(teacher: TeacherSpec) -> int:
    """Vocabulary size of a teacher's tokenizer."""
    total = teacher.settings.get("vocab_size")
    if not isinstance(total, int) or isinstance(total, bool):
        raise CacheError(
            f"teacher {teacher.kind}:{teacher.name}: does not record its vocabulary size; use "
            "another cache"
        )
    return total


def check_same_tokens(
    texts: TokenTexts,
    cache: Cache,
    rows: Rows,
    answers: RaggedArray,
    corpus: Corpus,
    tokenizer: Any,
) -> None:
    """Refuse texts whose tokens, or prompts, differ from the cached ones; either may be truncated
    where the other is not."""
    cached = cache.ragged("token_ids")
    lengths = cached.lengths(rows)
    prompts = cache["prompt_tokens"].gather(rows).astype(np.int64)
    differ = np.minimum(texts.prompts, lengths) != prompts
    _check_counts(answers.lengths(rows), lengths - prompts, corpus)
    common = np.minimum(texts.lengths, lengths)
    for start in range(0, len(texts), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(texts)))
        inside = arange_each(common[block])
        theirs = cached.gather_at(rows[block], inside, common[block])
        ours = texts.ids[np.repeat(texts.offsets[block], common[block]) + inside]
        wrong = np.flatnonzero(theirs != ours)
        owners = np.repeat(block, common[block])
        differ[owners[wrong]] = True
    if differ.any():
        first = int(np.flatnonzero(differ)[0])
        theirs = cached.gather(rows[first : first + 1]).parts()[0].astype(np.int64)
        raise CacheError(
            f"{corpus.where(first)}: its tokens differ from the teacher's ("
            f"{int(differ.sum())} such rows): "
            f"{_difference(tokenizer, texts.of(first).astype(np.int64), theirs)}"
        )


def _difference(tokenizer: Any, ours: Ids, theirs: Ids) -> str:
    """Message about the first difference between the tokens of a text, and its remedy."""

    def both(index: int) -> str:
        one, other = (
            repr(tokenizer.convert_ids_to_tokens(int(ids[index])))
            if len(ids) > index
            else "nothing"
            for ids in (theirs, ours)
        )
        return f"{one} for the teacher and {other} for the student"

    common = min(len(ours), len(theirs))
    index = int(np.argmax(np.append(ours[:common] != theirs[:common], True)))
    if index == common - 1 and len(ours) == len(theirs):
        return f"they end in {both(index)}; make the teacher's the student's eos_token"
    if any(_alike(ours[a:], theirs[b:]) for a, b in ((1, 0), (0, 1), (1, 1))):
        return f"they begin with {both(0)}; give the student's folder the teacher's tokenizer.json"
    return (
        f"token {index} is {both(index)}: formatting or tokenization has changed; precompute them "
        "again into a new cache, or give the student the teacher's tokenizer files"
    )


def _alike(one: Ids, other: Ids) -> bool:
    common = min(len(one), len(other))
    return common > 0 and np.array_equal(one[:common], other[:common])


def _check_counts(found: Rows, predicted: Rows, corpus: Corpus) -> None:
    """Check that every token after a prompt has a prediction: caches may come from strangers."""
    if (found != predicted).any():
        first = int(np.flatnonzero(found != predicted)[0])
        raise CacheError(
            f"{corpus.where(first)}: the cache has {int(found[first])} predictions for "
            f"{int(predicted[first])} tokens; use another cache"
        )


def matched_by_characters(
    answers: CachedAnswers, cache: Cache, rows: Rows, texts: TokenTexts
) -> MatchedTokens:
    """The predictions of a teacher with another tokenizer, where both have read the same."""
    if "characters_read" not in cache.features:
        raise JobError(
            "cross_tokenizer: the cache has no character offsets; precompute with "
            "characters=true, and add_features=true to keep what is cached"
        )
    found = match(answers, rows, texts, cache.ragged("characters_read"))
    if not len(found.ours):
        raise JobError(
            "cross_tokenizer: the two tokenizers never align in any text; are the texts formatted "
            "alike?"
        )
    return found


def with_generated(
    texts: TokenTexts, cache: Cache, rows: Rows, tokenizer: Any, most: int
) -> TokenTexts:
    """The same prompts with the teacher's own responses, truncated to `most` tokens in all."""
    generated = cache.ragged(GENERATED_IDS).gather(rows).parts()
    parts, sizes, cut = [], [], []
    for text, response in enumerate(generated):
        prompt = texts.of(text)[: texts.prompts[text]]
        whole = np.concatenate([prompt, response.astype(np.int32)])
        parts.append(whole[:most])
        cut.append(len(whole) > most)
        kept = tokenizer.decode(whole[len(prompt) : most], skip_special_tokens=True)
        sizes.append(len(kept.encode()))
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return TokenTexts(
        ids=np.concatenate(parts),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompts=texts.prompts,
        truncated=np.array(cut),
        bytes=np.array(sizes, dtype=np.int64),
    )
