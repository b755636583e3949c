"""From the data of a language job to the rows that a student sees, each text with its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cache_schemas.errors import CorpusError, StudentSourceError
from ...stages.corpus.labels import MISSING
from ...stages.distill.batches import DistillDataset
from ...stages.distill.language.ahead import AheadDataset
from ...stages.distill.language.batches import PackedTexts, pack
from ...stages.distill.language.cached_answers import CachedAnswers
from ...stages.distill.language.teachers import Answering, TeacherTokens
from ...stages.distill.order import Places
from ...stages.language.recipe import Recipe
from ...stages.language.tokens import TokenTexts, encode_texts
from ..distill_job import DistillJob
from ..messages import counted
from ..student_data import LabelledCorpus
from .data import LanguageData
from .teacher_texts import (
    check_same_tokens,
    matched_by_characters,
    with_generated,
    word_total,
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How texts become tokens; `most` of a text, and of a row of texts."""

    tokenizer: Any
    recipe: Recipe
    most: int

    def texts(self, labelled: LabelledCorpus, with_characters: bool = False) -> TokenTexts:
        """The texts of a corpus."""
        examples = [segments for batch in labelled.corpus.batches() for segments in batch]
        return encode_texts(self.tokenizer, self.recipe, examples, self.most, with_characters)

    @property
    def pad_id(self) -> int:
        """What rows are filled up with. Raises StudentSourceError."""
        if self.tokenizer.pad_token_id is None:
            raise StudentSourceError(
                "student: its tokenizer has neither a padding token nor an end token to fill rows "
                "with; set its pad_token and save it again"
            )
        return int(self.tokenizer.pad_token_id)


def learnable(
    job: DistillJob, data: LanguageData, encoding: Encoding
) -> tuple[LanguageData, TokenTexts]:
    """The training examples of which something is to be predicted, and their tokens; others are
    left out and listed, or refused. Only a student's tokens show them: a prompt alone may be as
    long as a text may be."""
    texts = _texts(job, data, encoding)
    empty = np.flatnonzero(texts.predicted == 0)
    if not len(empty):
        return data, texts
    if not job.skip_bad_rows or len(empty) == len(texts):
        rows = counted(len(empty), "such row")
        raise CorpusError(
            f"{data.train.corpus.where(int(empty[0]))}: nothing of it is left to predict: its "
            f"prompt fills max_length, or its response is empty ({rows}); raise max_length, mend "
            "the file, or set skip_bad_rows=true to leave such rows out"
        )
    data = data.without(empty, "nothing of it is left to predict")
    return data, _texts(job, data, encoding)


def train_set(
    job: DistillJob, data: LanguageData, texts: TokenTexts, encoding: Encoding, seed: int
) -> DistillDataset:
    """What a student is trained on; `texts` are those of the data. Raises an InputError where
    texts and answers do not fit."""
    teacher, prompted = _teacher(job, data, texts, encoding.tokenizer), encoding.recipe.has_prompt
    rows = pack(texts, job.packing, encoding.most, encoding.pad_id, teacher, prompted)
    labels = data.train.labels if job.packing == "none" else np.full(len(rows), MISSING)
    return AheadDataset(rows, labels, data.gathers(seed), _names(data.train, rows))


def validation_set(data: LanguageData, encoding: Encoding) -> DistillDataset | None:
    """What a student is evaluated by: a row for each text."""
    if data.validation is None:
        return None
    rows = pack(encoding.texts(data.validation), "none", encoding.most, encoding.pad_id)
    return DistillDataset(rows, np.full(len(rows), MISSING), {})


def _texts(job: DistillJob, data: LanguageData, encoding: Encoding) -> TokenTexts:
    texts, words = encoding.texts(data.train, job.cross_tokenizer), data.words
    if words is None or job.responses == "corpus":
        return texts
    return with_generated(texts, words.cache, words.rows, encoding.tokenizer, encoding.most)


def _teacher(
    job: DistillJob, data: LanguageData, texts: TokenTexts, tokenizer: Any
) -> Answering | None:
    words = data.words
    if words is None or job.responses == "generated":
        return None
    feature = words.cache.ragged(words.feature)
    answers = CachedAnswers(feature, job.token_temperature, job.tail)
    answers.check(job.divergence, job.cross_tokenizer, word_total(words.spec))
    if job.cross_tokenizer:
        return matched_by_characters(answers, words.cache, words.rows, texts)
    check_same_tokens(texts, words.cache, words.rows, feature, data.train.corpus, tokenizer)
    return TeacherTokens(answers, words.rows)


def _names(train: LabelledCorpus, rows: PackedTexts) -> Callable[[Places], list[str]]:
    """What rows are, for people: the first text of each."""
    return lambda places: train.names(rows.packs.texts[rows.packs.offsets[places]])
