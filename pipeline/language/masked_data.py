"""Datasets of a masked language model: masked texts, each with the teachers' predictions of what is
masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import CacheError, CorpusError, InputError, JobError
from ...cache_schemas.features import TOKEN_IDS
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import MISSING
from ...stages.distill.batches import DistillDataset
from ...stages.distill.language.batches import AheadDataset, MaskedRows
from ...stages.distill.language.evaluation import MASKED_METRICS
from ...stages.distill.language.teachers import Answering, CachedAnswers, TeacherTokens
from ...stages.distill.token_loss.settings import TokenLossSettings
from ...stages.language.masking import MaskedTexts, Masker, encode_whole
from ...stages.pretrained import padding_id
from ...stages.ragged import arange_each, positions_of
from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import RaggedArray
from ..distill_job import DistillJob
from ..messages import counted
from ..sources import Source
from ..student_data import StudentData
from ..task import Plan
from .datasets import TokenTeacher, token_teachers
from .keys import require_same_masks
from .teacher_texts import check_tokenizer, teacher_vocab_size

_BLOCK = 4096
"""Texts whose tokens are compared at once."""


@dataclass(frozen=True, slots=True)
class MaskedEncoding:
    """Tokens and masks; `most` is the maximum length of a text."""

    tokenizer: Any
    masker: Masker
    most: int

    def texts(self, corpus: Corpus, times: int = 1) -> MaskedTexts:
        """The texts of a corpus, each so many times in a row, under its first, second, ... mask."""
        examples = [segments for batch in corpus.batches() for segments in batch]
        whole, numbers = encode_whole(self.tokenizer, examples, self.most).repeated(times)
        return self.masker.mask(whole, np.repeat(corpus.keys(), times, axis=0), numbers)

    def rows(self, texts: MaskedTexts, answers: Mapping[str, Answering]) -> MaskedRows:
        """The texts as rows of a dataset."""
        return MaskedRows(texts, self.most, padding_id(self.tokenizer), answers)


def masked_teachers(plan: Plan, encoding: MaskedEncoding) -> list[TokenTeacher]:
    """Teachers of masked tokens of a run. Raises JobError where one has read other tokens, or texts
    under other masks."""
    found = token_teachers(plan, encoding.tokenizer)
    for each in found:
        if each.options.cross_tokenizer:
            raise JobError("cross_tokenizer: a mask is of one tokenizer's tokens; leave it out")
        teacher = plan.data.sources[each.source].teacher
        require_same_masks(teacher, encoding.masker.settings, encoding.most)
    return found


def maskable(
    job: DistillJob, data: StudentData, encoding: MaskedEncoding
) -> tuple[StudentData, MaskedTexts]:
    """The training examples, each once for each of its masks, and their masked texts; those with no
    token to mask are left out and listed, or refused."""
    times = encoding.masker.settings.masks_per_text
    texts = encoding.texts(data.train.corpus, times)
    empty = np.flatnonzero(texts.predicted[::times] == 0)
    if len(empty):
        if not job.skip_bad_rows or len(empty) == len(data.train.labels):
            such = counted(len(empty), "such row")
            raise CorpusError(
                f"{data.train.corpus.where(int(empty[0]))}: no token to mask: its text is empty, "
                f"or unknown to the tokenizer ({such}); fix the file, or set skip_bad_rows=true to "
                "skip such rows"
            )
        data = data.without(empty, "no token to mask")
        texts = encoding.texts(data.train.corpus, times)
    if times > 1:
        rows = np.repeat(np.arange(len(data.train.labels)), times)
        data = replace(data, train=data.train.take(rows))
    return data, texts


def masked_train_set(
    data: StudentData,
    teachers: Sequence[TokenTeacher],
    texts: MaskedTexts,
    encoding: MaskedEncoding,
    seed: int,
) -> DistillDataset:
    """Training set; `texts` are those of the data. Raises an InputError where texts and predictions
    do not match."""
    data.require_same_tokens(data.train, texts.ids, texts.offsets, encoding.tokenizer)
    answers: dict[str, Answering] = {}
    for each in teachers:
        source, options = data.sources[each.source], each.options
        cached = CachedAnswers(
            source.of_tokens,
            options.token_temperature,
            options.tail,
            options.token_temperatures,
        )
        cached.check(options, False, teacher_vocab_size(source.teacher))
        rows = data.train.cache_rows[each.source]
        numbers = np.arange(len(texts)) % encoding.masker.settings.masks_per_text
        answers[each.name] = _same_masks(source, cached, rows, texts, numbers, data.train.corpus)
    labels = np.full(len(texts), MISSING)
    rows_of_tokens = encoding.rows(texts, answers)
    train = data.train
    return AheadDataset(rows_of_tokens, labels, data.gathers(seed), train.names, train.weights)


def masked_validation_set(
    job: DistillJob, data: StudentData, encoding: MaskedEncoding
) -> tuple[StudentData, DistillDataset | None]:
    """Validation set: each text under its first mask, with the predictions that the student is
    compared with; and the data without teachers that an undistilled student cannot be compared
    with."""
    if data.validation is None:
        return data, None
    corpus = data.validation.corpus
    texts = data.encoded_once(
        "validation",
        encoding.tokenizer,
        encoding.most,
        lambda: encoding.texts(corpus),
    )
    if not texts.predicted.any():
        raise CorpusError(f"{corpus.where(0)}: no token to mask in any validation text")
    answers: dict[str, Answering] = {}
    for name, each in data.measured.of_tokens.items():
        try:
            answers[name] = compared_masks(each.source, each.rows, texts, corpus, encoding)
        except InputError as error:
            required = job.distilled or job.measure_teacher == "require"
            if required or data.metric not in MASKED_METRICS:
                raise
            data = replace(data, measured=data.measured.without(name, str(error)))
    return data, DistillDataset(encoding.rows(texts, answers), np.full(len(texts), MISSING), {})


def compared_masks(
    source: Source, rows: Rows, texts: MaskedTexts, corpus: Corpus, encoding: MaskedEncoding
) -> Answering:
    """Predictions at temperature 1 for masked texts of a corpus, from cache rows `rows`, -1 for
    none. Raises an InputError where tokens or masks are not the student's."""
    teacher = source.teacher
    require_same_masks(teacher, encoding.masker.settings, encoding.most)
    check_tokenizer(teacher, encoding.tokenizer, cross_tokenizer=False)
    answers = CachedAnswers(source.of_tokens, 1.0, "bucket")
    answers.check(TokenLossSettings(), False, teacher_vocab_size(teacher))
    return _same_masks(source, answers, rows, texts, np.zeros(len(texts), np.int64), corpus)


def _same_masks(
    source: Source,
    answers: CachedAnswers,
    rows: Rows,
    texts: MaskedTexts,
    numbers: Rows,
    corpus: Corpus,
) -> TeacherTokens:
    """Predictions for texts under the masks of their numbers [N]. Raises CacheError where the
    teacher has read another text, or predicted other tokens."""
    times = source.teacher.settings["masks_per_text"]
    assert isinstance(times, int)
    first, known = texts.predicted * numbers, np.flatnonzero(rows >= 0)
    at = np.concatenate([[0], np.cumsum(texts.predicted)]).astype(np.int64)
    none, tokens = np.zeros_like(first), source.cache.ragged(TOKEN_IDS)
    of_masks: list[tuple[RaggedArray, npt.NDArray[Any]]] = [
        (source.cache.ragged("masked_positions"), texts.positions),
        (source.cache.ragged("masked_ids"), texts.read[texts.chosen]),
    ]
    differ = np.zeros(len(texts), dtype=bool)
    for start in range(0, len(known), _BLOCK):
        block = known[start : start + _BLOCK]
        ours = texts.ids[positions_of(block, texts.offsets)]
        lengths, predicted = texts.lengths[block], texts.predicted[block]
        differ[block] = _differ(tokens, rows[block], ours, lengths, none[block])
        differ[block] |= tokens.lengths(rows[block]) != lengths
        for array, values_P in of_masks:
            ours = values_P[positions_of(block, at)]
            differ[block] |= _differ(array, rows[block], ours, predicted, first[block])
        for array in (answers.feature, *(array for array, _ in of_masks)):
            differ[block] |= array.lengths(rows[block]) != predicted * times
    if differ.any():
        raise CacheError(
            f"{corpus.where(int(np.flatnonzero(differ)[0]))}: its tokens, or their mask, are not "
            f"those that {source.teacher.kind}:{source.teacher.name} has read "
            f"({counted(int(differ.sum()), 'such row')}); give the student the teacher's tokenizer "
            "files, or precompute into a new cache"
        )
    return TeacherTokens(answers, rows, first)


def _differ(
    cached: RaggedArray, rows: Rows, ours: npt.NDArray[Any], counts: Rows, first: Rows
) -> npt.NDArray[np.bool_]:
    """For which texts the cached values, `counts` of each from its `first` on, are not `ours`, text
    after text; where fewer are cached, all that there are are compared."""
    there = np.minimum(counts, np.maximum(cached.lengths(rows) - first, 0))
    at, some = np.repeat(first, there) + arange_each(there), there > 0
    theirs = cached.gather_at(rows[some], at, there[some])
    own = ours[np.repeat(np.cumsum(counts) - counts, there) + arange_each(there)]
    differ = np.zeros(len(rows), dtype=bool)
    differ[np.repeat(np.arange(len(rows)), there)[theirs != own]] = True
    return differ
