"""A run of `distill` with one seed whose student is a language model."""

from dataclasses import dataclass, replace
from typing import Any

from ...cache_schemas.errors import StudentSourceError
from ...stages.adapters import named_base
from ...stages.distill.language.export import LanguageCard, save_language_student
from ...stages.distill.language.model import LanguageModel, WordLoss
from ...stages.distill.language.source import (
    check_apart,
    choose_row_length,
    load_language_student,
)
from ...stages.distill.language.student import LanguageStudent
from ...stages.distill.language.trainer import LanguageTrainer
from ...stages.distill.training import Run
from ..model_card import model_card
from ..seed_run import Built, Metrics, SeedRun
from .data import LanguageData
from .datasets import Encoding, learnable, train_set, validation_set
from .teacher_texts import check_tokenizer


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
        for labelled in filter(None, (data.train, data.validation)):
            labelled.corpus.require_format(recipe.text_format, f"text_format {recipe.text_format}")
        student, tokenizer = load_language_student(
            job, job, data.space, data.train.texts(), job.dropout
        )
        if self._warns:
            data.train.warn_of_unknown(tokenizer)
        recipe.check(tokenizer)
        most = choose_row_length(job.max_length, tokenizer, student.causal)
        if job.packing == "apart":
            check_apart(student)
        if data.words is not None:
            check_tokenizer(data.words.spec, tokenizer, job.cross_tokenizer)
        encoding = Encoding(tokenizer, recipe, most)
        data, texts = learnable(job, data, encoding)
        return Built(
            model=self._model(student),
            tokenizer=tokenizer,
            max_length=most,
            train=train_set(job, data, texts, encoding, self.seed),
            validation=validation_set(data, encoding),
            data=data,
        )

    def _model(self, student: LanguageStudent) -> LanguageModel:
        job = self.job
        # Those that the job names, also where a control leaves the teacher out.
        alpha = float(job.options.get("alpha", 0.0))
        words = WordLoss(job, alpha, job.token_temperature, job.cross_tokenizer)
        return LanguageModel(student, self._objective(student.dim), words)

    def _prepare(self, built: Built) -> Run:
        run = super(LanguageSeedRun, self)._prepare(built)
        # Without labels nothing teaches an aligner: it stays as it was drawn, an orthogonal map.
        as_drawn = run.as_drawn if self.data.space.task != "none" else self.data.sources.keys()
        return replace(run, trainer=LanguageTrainer, as_drawn=as_drawn)

    def _save(self, model: Any, built: Built, metrics: Metrics) -> None:
        job, data = self.job, self._words
        card = LanguageCard(
            recipe=job.recipe(data.words.spec if data.words else None),
            max_length=built.max_length,
            text_columns=job.text_column,
            space=data.space,
            metric=data.metric,
            **(
                named_base(job.student, job.student_revision, StudentSourceError)
                if job.lora_rank
                else {}
            ),
        )
        folder = self.folder / "student"
        save_language_student(folder, model.student, built.tokenizer, model.objective, card)
        readme = model_card(job, metrics, data, model.student, folder)
        (folder / "README.md").write_text(readme, encoding="utf-8")
