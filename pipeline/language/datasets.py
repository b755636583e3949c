"""Datasets of a language job: rows of tokens, each text with the teachers' predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import CorpusError, InputError, JobError, StudentSourceError
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import MISSING
from ...stages.distill.batches import DistillDataset
from ...stages.distill.language.batches import AheadDataset, PackedTexts, pack
from ...stages.distill.language.evaluation import METRICS
from ...stages.distill.language.pairs import paired
from ...stages.distill.language.teachers import Answering, CachedAnswers, TeacherTokens
from ...stages.distill.objectives.options import TokensOptions
from ...stages.distill.order import Indices
from ...stages.distill.token_loss.settings import TokenLossSettings
from ...stages.language.recipe import Recipe
from ...stages.language.tokens import TokenTexts, encode_prompts, encode_texts
from ...stages.store.format.rows import Rows
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..messages import counted
from ..sources import Source
from ..student_data import StudentData
from ..task import Plan
from .pairs import references_of
from .teacher_texts import (
    check_same_tokens,
    check_tokenizer,
    matched_by_characters,
    teacher_vocab_size,
    with_generated,
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Tokenization; `most` is the maximum length of a text, and of a row."""

    tokenizer: Any
    recipe: Recipe
    most: int

    def texts(self, corpus: Corpus, with_characters: bool = False) -> TokenTexts:
        """The texts of a corpus."""
        examples = _examples(corpus)
        return encode_texts(self.tokenizer, self.recipe, examples, self.most, with_characters)

    def prompts(self, corpus: Corpus) -> TokenTexts:
        """The texts of a corpus of prompts alone."""
        return encode_prompts(self.tokenizer, self.recipe, _examples(corpus), self.most)

    @property
    def pad_id(self) -> int:
        """Id of the padding token. Raises StudentSourceError."""
        if self.tokenizer.pad_token_id is None:
            raise StudentSourceError(
                "student: its tokenizer has neither a padding nor an end token; set its pad_token "
                "and save it again"
            )
        return int(self.tokenizer.pad_token_id)


@dataclass(frozen=True, slots=True)
class TokenTeacher:
    """A source of predicted distributions, and how an objective compares them."""

    name: str
    """Name of the source in the objective."""
    source: str
    options: TokensOptions


def token_teachers(plan: Plan, tokenizer: Any) -> list[TokenTeacher]:
    """Token teachers of a run. Raises JobError if tokens differ from the student's."""
    found = [
        TokenTeacher(term.label, reading.source, TokensOptions(**term.keys.options))
        for term in plan.terms
        if term.reads_predictions and not term.compares_pairs
        for reading in term.readings
    ]
    for each in found:
        teacher = plan.data.sources[each.source].teacher
        check_tokenizer(teacher, tokenizer, each.options.cross_tokenizer)
    return found


@dataclass(frozen=True, slots=True)
class TrainTexts:
    """Tokens of the training texts, and of the rejected responses to the same prompts, if
    any."""

    texts: TokenTexts
    rejected: TokenTexts | None

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """Which rows have a text of which nothing is to be predicted [N]."""
        both = [self.texts, *([] if self.rejected is None else [self.rejected])]
        empty: npt.NDArray[np.bool_] = np.logical_or.reduce([each.predicted == 0 for each in both])
        return empty


def learnable(
    job: DistillJob, data: StudentData, teachers: Sequence[TokenTeacher], encoding: Encoding
) -> tuple[StudentData, TrainTexts]:
    """The training examples of which something is to be predicted, and their tokens; others are
    left out and listed, or refused. Only a student's tokens show them: a prompt alone may be as
    long as a text may be."""
    found = _train_texts(job, data, teachers, encoding)
    empty = np.flatnonzero(found.empty)
    if not len(empty):
        return data, found
    if not job.skip_bad_rows or len(empty) == len(found.texts):
        rows = counted(len(empty), "such row")
        raise CorpusError(
            f"{data.train.corpus.where(int(empty[0]))}: no tokens left to predict: its prompt "
            f"fills max_length, or its response is empty ({rows}); raise max_length, fix the file, "
            "or set skip_bad_rows=true to skip such rows"
        )
    data = data.without(empty, "no tokens left to predict")
    return data, _train_texts(job, data, teachers, encoding)


def train_set(
    plan: Plan,
    data: StudentData,
    teachers: Sequence[TokenTeacher],
    train: TrainTexts,
    encoding: Encoding,
) -> DistillDataset:
    """Training set; `train` are the texts of the data. Raises an InputError where texts and
    predictions do not match."""
    job, texts = plan.job, train.texts
    data.require_same_tokens(data.train, texts.ids, texts.offsets, encoding.tokenizer)
    with_predictions = {}
    if job.responses == "corpus":
        with_predictions = {
            each.name: _with_predictions(data, each, texts, encoding.tokenizer) for each in teachers
        }
    prompted = encoding.recipe.has_prompt
    rows = pack(
        texts,
        job.packing,
        encoding.most,
        encoding.pad_id,
        with_predictions,
        prompted,
        data.train.row_weights,
    )
    if train.rejected is not None and any(term.compares_pairs for term in plan.terms):
        both = (texts, train.rejected)
        references = references_of(data, data.train, plan.terms, both, encoding.tokenizer)
        rows = paired(rows, train.rejected, references)
    labels = data.train.labels if job.packing == "none" else np.full(len(rows), MISSING)
    weights = data.train.weights
    names = _names(data.train, rows)
    return AheadDataset(rows, labels, data.gathers(plan.seed), names, weights)


def validation_set(
    plan: Plan, data: StudentData, encoding: Encoding
) -> tuple[StudentData, DistillDataset | None]:
    """Validation set: a row for each text, with the predictions that the student is compared with,
    and the rejected response if there is one; and the data without teachers that an undistilled
    student cannot be compared with."""
    if data.validation is None:
        return data, None
    job = plan.job
    validation, tokenizer = data.validation, encoding.tokenizer
    texts = data.encoded_once(
        "validation", tokenizer, encoding.most, lambda: encoding.texts(validation.corpus)
    )
    answers: dict[str, Answering] = {}
    for name, each in data.measured.of_tokens.items():
        try:
            answers[name] = compared_tokens(
                each.source, each.rows, texts, validation.corpus, encoding
            )
        except InputError as error:
            if job.distilled or job.measure_teacher == "require" or data.metric not in METRICS:
                raise
            data = replace(data, measured=data.measured.without(name, str(error)))
    rows = pack(texts, "none", encoding.most, encoding.pad_id, answers)
    if validation.rejected is not None:
        corpus = validation.rejected
        rejected = data.encoded_once(
            "rejected validation", tokenizer, encoding.most, lambda: encoding.texts(corpus)
        )
        references = references_of(data, validation, plan.terms, (texts, rejected), tokenizer)
        rows = paired(rows, rejected, references)
    return data, DistillDataset(rows, np.full(len(rows), MISSING), {})


def compared_tokens(
    source: Source, rows: Rows, texts: TokenTexts, corpus: Corpus, encoding: Encoding
) -> Answering:
    """Predictions at temperature 1 for the texts of a corpus, from cache rows `rows`, -1 for none.
    Raises an InputError where the tokens are not the student's, or none has a prediction."""
    check_tokenizer(source.teacher, encoding.tokenizer, cross_tokenizer=False)
    answers = CachedAnswers(source.of_tokens, 1.0, "bucket")
    answers.check(TokenLossSettings(), False, teacher_vocab_size(source.teacher))
    found = _same_tokens(source, answers, rows, texts, corpus, encoding.tokenizer)
    if not found.counts(np.arange(len(texts)), texts.predicted).any():
        raise JobError(
            f"teacher {source.teacher.kind}:{source.teacher.name}: has predicted no token of these "
            "texts; leave it out"
        )
    return found


def _examples(corpus: Corpus) -> list[tuple[str, ...]]:
    return [segments for batch in corpus.batches() for segments in batch]


def _train_texts(
    job: DistillJob, data: StudentData, teachers: Sequence[TokenTeacher], encoding: Encoding
) -> TrainTexts:
    rejected = data.train.rejected
    return TrainTexts(
        _texts(job, data, teachers, encoding),
        None if rejected is None else encoding.texts(rejected),
    )


def _texts(
    job: DistillJob, data: StudentData, teachers: Sequence[TokenTeacher], encoding: Encoding
) -> TokenTexts:
    if not teachers or job.responses == "corpus":
        with_characters = any(each.options.cross_tokenizer for each in teachers)
        return encoding.texts(data.train.corpus, with_characters)
    (teacher,) = teachers
    source, rows = data.sources[teacher.source], data.train.cache_rows[teacher.source]
    prompts_alone = source.teacher.settings.get("response_column") is False
    corpus = data.train.corpus
    texts = encoding.prompts(corpus) if prompts_alone else encoding.texts(corpus)
    cache = source.cache
    return with_generated(texts, cache, rows, encoding.tokenizer, encoding.most)


def _with_predictions(
    data: StudentData, teacher: TokenTeacher, texts: TokenTexts, tokenizer: Any
) -> Answering:
    source, rows = data.sources[teacher.source], data.train.cache_rows[teacher.source]
    feature, options = source.of_tokens, teacher.options
    answers = CachedAnswers(
        feature, options.token_temperature, options.tail, options.token_temperatures
    )
    answers.check(options, options.cross_tokenizer, teacher_vocab_size(source.teacher))
    if options.cross_tokenizer:
        return matched_by_characters(answers, source.cache, rows, texts)
    return _same_tokens(source, answers, rows, texts, data.train.corpus, tokenizer)


def _same_tokens(
    source: Source,
    answers: CachedAnswers,
    rows: Rows,
    texts: TokenTexts,
    corpus: Corpus,
    tokenizer: Any,
) -> TeacherTokens:
    known = np.flatnonzero(rows >= 0)
    if len(known) < len(rows):
        texts, corpus = texts.take(known), corpus.take(known)
    check_same_tokens(texts, source.cache, rows[known], answers.feature, corpus, tokenizer)
    return TeacherTokens(answers, rows)


def _names(train: LabelledCorpus, rows: PackedTexts) -> Callable[[Indices], list[str]]:
    """Names of rows for messages: the first text of each."""
    return lambda indices: train.names(rows.packs.texts[rows.packs.offsets[indices]])
