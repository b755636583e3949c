"""Corpora of preferences: two responses to each prompt, and a reference's cached log-probabilities
of both.

The preferred response is the last of the text columns, as any response is; the rejected one is a
column of its own. A source of log-probabilities is joined twice, by the keys of both texts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from ...cache_schemas.chats import chat_turns
from ...cache_schemas.errors import CacheError, CorpusError
from ...stages.corpus.corpus import Corpus
from ...stages.distill.language.pairs import LogProbs
from ...stages.language.tokens import TokenTexts
from ...stages.ragged import arange_each
from ...stages.store.format.rows import Rows
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..messages import counted
from ..sources import Columns, Source
from ..student_data import StudentData
from ..terms import Term
from .teacher_texts import check_same_tokens, check_tokenizer

OWN_LOG_PROBS = "own_log_probs"
"""Feature of a teacher's log-probabilities of a text's own tokens."""

_BLOCK = 4096
"""Texts whose log-probabilities are read at once."""


def of_different_responses(
    job: DistillJob, labelled: LabelledCorpus, columns: Columns
) -> LabelledCorpus:
    """The rows of a corpus with the text columns of both responses, if it has rejected ones. Rows
    whose responses are equal are left out and listed, or raise CorpusError; so do chats whose
    prompts differ."""
    if not columns.rejected:
        return labelled
    return labelled.without(*equal_responses(labelled.corpus, columns, job.skip_bad_rows))


def equal_responses(corpus: Corpus, columns: Columns, skip_bad_rows: bool) -> tuple[Rows, str]:
    """Rows whose two responses are equal, and the problem of these. Raises CorpusError for such
    rows unless they are skipped and others are left, and for chats whose prompts differ."""
    at, rejected_at = columns.student[-1], columns.rejected[-1]
    one, other = corpus.segments[at], corpus.segments[rejected_at]
    if corpus.chats:
        require_one_chat(corpus, columns)
        _check_prompts(corpus, at, rejected_at)
    equal = np.flatnonzero(pc.equal(one, other).to_numpy(zero_copy_only=False))
    names = " and ".join(repr(columns.names[each]) for each in (at, rejected_at))
    problem = f"columns {names} are the same response"
    if len(equal) and not (skip_bad_rows and len(equal) < len(corpus)):
        rows = counted(len(equal), "such row")
        raise CorpusError(
            f"{corpus.where(int(equal[0]))}: {problem}, so none is preferred ({rows}); fix the "
            "file, or set skip_bad_rows=true to skip such rows"
        )
    return equal, problem


def with_rejected(labelled: LabelledCorpus, columns: Columns) -> LabelledCorpus:
    """The student's texts, and the rejected responses beside, if there are any."""
    own = labelled.of_columns(columns.student)
    if not columns.rejected:
        return own
    return own.beside(labelled.corpus.of_columns(columns.rejected))


def require_one_chat(corpus: Corpus, columns: Columns) -> None:
    """Raises CorpusError for chats beside other text columns of the student."""
    if corpus.chats and len(columns.student) > 1:
        raise CorpusError(
            f"corpus {corpus.sources[0]}: its text columns hold chats, and a chat has its prompt; "
            "name the one of the preferred chats in text_column"
        )


def _check_prompts(corpus: Corpus, one: int, other: int) -> None:
    """Refuse chats of which the two responses answer different prompts."""
    chats = zip(corpus.segments[one].to_pylist(), corpus.segments[other].to_pylist(), strict=True)
    for row, pair in enumerate(chats):
        if len({str(chat_turns(chat)[:-1]) for chat in pair}) > 1:
            raise CorpusError(
                f"{corpus.where(row)}: the two chats differ before their last answer; give both "
                "the same turns up to it"
            )


def references_of(
    data: StudentData,
    labelled: LabelledCorpus,
    terms: Sequence[Term],
    texts: tuple[TokenTexts, TokenTexts],
    tokenizer: object,
) -> Mapping[str, LogProbs]:
    """Log-probabilities [N, 2] of both responses, summed over the tokens that the student predicts,
    under the reference of each objective of pairs that has one. Raises an InputError where tokens
    differ, or where the reference has read less of a text than the student reads."""
    assert labelled.rejected is not None
    corpora = (labelled.corpus, labelled.rejected)
    found = {}
    for term in terms:
        if not (term.compares_pairs and term.readings):
            continue
        columns = []
        for reading, own, corpus in zip(term.readings, texts, corpora, strict=True):
            source, rows = data.sources[reading.source], labelled.cache_rows[reading.source]
            check_tokenizer(source.teacher, tokenizer, cross_tokenizer=False)
            columns.append(summed_log_probs(source, rows, own, corpus, tokenizer))
        found[term.label] = np.stack(columns, axis=1)
    return found


def summed_log_probs(
    source: Source, rows: Rows, texts: TokenTexts, corpus: Corpus, tokenizer: object
) -> LogProbs:
    """The sum [N] of the cached log-probabilities of each text's predicted tokens, in nats."""
    feature = source.of_tokens
    check_same_tokens(texts, source.cache, rows, feature, corpus, tokenizer)
    predicted, known = texts.predicted, feature.lengths(rows)
    short = np.flatnonzero(known < predicted)
    who = f"teacher {source.teacher.kind}:{source.teacher.name}"
    if len(short):
        first = int(short[0])
        raise CacheError(
            f"{corpus.where(first)}: {who} has read {int(known[first])} of the "
            f"{int(predicted[first])} tokens of its response ({counted(len(short), 'such row')}); "
            f"set max_length={source.teacher.settings.get('max_length')} as it has, or precompute "
            "with a larger one into a new cache"
        )
    sums = np.zeros(len(texts), dtype=np.float64)
    for start in range(0, len(texts), _BLOCK):
        block = slice(start, start + _BLOCK)
        counts = predicted[block]
        values = feature.gather_at(rows[block], arange_each(counts), counts).astype(np.float64)
        owners = np.repeat(np.arange(len(counts)), counts)
        sums[block] = np.bincount(owners, weights=values, minlength=len(counts))
    broken = np.flatnonzero(~np.isfinite(sums))
    if len(broken):
        raise CacheError(
            f"{corpus.where(int(broken[0]))}: {who} has a log-probability that is not finite "
            f"({counted(len(broken), 'such row')}); use another cache"
        )
    return sums
