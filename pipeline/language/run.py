"""A run of `distill` with one seed whose student is a language model."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...stages.corpus.labels import MISSING
from ...stages.distill.batches import DistillDataset
from ...stages.distill.language.batches import PackedTexts, TeacherTokens, pack
from ...stages.distill.language.cached_answers import CachedAnswers
from ...stages.distill.language.export import LanguageCard, save_language_student
from ...stages.distill.language.model import LanguageModel, WordLoss
from ...stages.distill.language.source import choose_row_length, load_language_student
from ...stages.distill.language.student import LanguageStudent
from ...stages.distill.language.trainer import LanguageTrainer
from ...stages.distill.objectives.base import Sizes
from ...stages.distill.training import Run
from ...stages.language.recipe import Recipe
from ...stages.language.tokens import TokenTexts, encode_texts
from ..model_card import model_card
from ..seed_run import Built, Metrics, SeedRun
from ..student_data import LabelledCorpus
from .data import LanguageData, Words
from .predictable import with_words_to_predict
from .teacher_texts import check_same_tokens, check_tokenizer, with_generated


@dataclass(frozen=True, slots=True)
class LanguageSeedRun(SeedRun):
    """As of other students, but for what is built and what is written."""

    @property
    def _words(self) -> LanguageData:
        assert isinstance(self.data, LanguageData)
        return self.data

    def _build(self) -> Built:
        job, data = self.job, self._words
        recipe = job.recipe(data.words.spec if data.words else None)
        student, tokenizer = load_language_student(
            job, job, data.space, data.train.texts(), job.dropout
        )
        most = choose_row_length(job.max_length, tokenizer, student.causal)
        if data.words is not None:
            check_tokenizer(data.words.spec, tokenizer, job.cross_tokenizer)
        texts = self._train_texts(tokenizer, recipe, most)
        data, texts = with_words_to_predict(data, texts, job.skip_bad_rows)
        shape = data.feature.spec.shape if data.feature is not None else None
        sizes = Sizes(student.dim, data.space.num_labels, data.space.regression, shape)
        return Built(
            model=self._model(student, sizes),
            tokenizer=tokenizer,
            max_length=most,
            train=self._train_set(data, texts, most, int(tokenizer.pad_token_id)),
            validation=self._validation_set(tokenizer, recipe, most),
            data=data,
        )

    def _model(self, student: LanguageStudent, sizes: Sizes) -> LanguageModel:
        job = self.job
        words = WordLoss(job, job.alpha, job.token_temperature, job.cross_tokenizer)
        return LanguageModel(student, self.objective(job, sizes), words)

    def _train_texts(self, tokenizer: Any, recipe: Recipe, most: int) -> TokenTexts:
        """What is predicted, and proved to be what the teacher of words was asked about."""
        data = self._words
        texts = _encoded(data.train, tokenizer, recipe, most)
        if data.words is None:
            return texts
        if self.job.responses == "generated":
            return with_generated(texts, data.words.cache, data.words.rows, tokenizer, most)
        check_same_tokens(texts, data.words.cache, data.words.rows, data.train.corpus)
        return texts

    def _train_set(
        self, data: LanguageData, texts: TokenTexts, most: int, pad_id: int
    ) -> DistillDataset:
        job, teacher = self.job, None
        if data.words is not None and job.responses == "corpus":
            teacher = self._teacher_tokens(data.words)
        rows = pack(texts, job.packing, most, pad_id, teacher)
        gather = data.gather(job.parsed_control, self.seed)
        labels = data.train.labels if job.packing == "none" else np.full(len(rows), MISSING)
        return DistillDataset(rows, labels, gather, _names(data, rows))

    def _teacher_tokens(self, words: Words) -> TeacherTokens:
        feature = words.cache.ragged(words.feature)
        answers = CachedAnswers(feature, self.job.token_temperature, self.job.tail)
        answers.check()
        return TeacherTokens(answers, words.rows)

    def _validation_set(self, tokenizer: Any, recipe: Recipe, most: int) -> DistillDataset | None:
        validation = self.data.validation
        if validation is None:
            return None
        texts = _encoded(validation, tokenizer, recipe, most)
        rows = pack(texts, "none", most, int(tokenizer.pad_token_id))
        return DistillDataset(rows, np.full(len(rows), MISSING), None)

    def _prepare(self, built: Built) -> Run:
        run = super(LanguageSeedRun, self)._prepare(built)
        # Without labels nothing teaches an aligner: it stays as it was drawn, an orthogonal map.
        learns = run.train_aligner and self.data.space.task != "none"
        return replace(run, trainer=LanguageTrainer, train_aligner=learns)

    def _save(self, model: Any, built: Built, metrics: Metrics) -> None:
        job, data = self.job, self._words
        card = LanguageCard(
            recipe=job.recipe(data.words.spec if data.words else None),
            max_length=built.max_length,
            text_columns=job.text_column,
            space=data.space,
            metric=data.metric,
            base=job.student if job.lora_rank else None,
            base_revision=job.student_revision if job.lora_rank else None,
        )
        folder = self.folder / "student"
        save_language_student(folder, model.student, built.tokenizer, model.objective, card)
        (folder / "README.md").write_text(model_card(job, metrics, data), encoding="utf-8")


def _encoded(labelled: LabelledCorpus, tokenizer: Any, recipe: Recipe, most: int) -> TokenTexts:
    examples = [segments for batch in labelled.corpus.batches() for segments in batch]
    return encode_texts(tokenizer, recipe, examples, most)


def _names(data: LanguageData, rows: PackedTexts) -> Any:
    return lambda places: data.train.names(rows.packs.texts[rows.packs.offsets[places]])
