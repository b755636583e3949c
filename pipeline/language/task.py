"""Students that are language models: they learn the next token."""

from collections.abc import Sequence
from pathlib import Path

from ...cache_schemas.errors import JobError
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import NO_LABELS, LabelSpace, label_space
from ...stages.distill.language.evaluation import METRICS
from ...stages.distill.language.export import LanguageCard, save_language_student
from ...stages.distill.language.source import (
    check_document_mask,
    choose_row_length,
    load_language_student,
)
from ...stages.distill.language.trainer import LanguageModel, LanguageTrainer
from ...stages.distill.model import TrainedModel
from ...stages.language.recipe import Recipe
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..task import Built, MakeObjective, Plan, Task, refuse_without_labels
from ..terms import Term
from .datasets import Encoding, learnable, token_teachers, train_set, validation_set


class LanguageTask(Task):
    """A causal language model; where its texts have labels, with a head for those beside it."""

    scores = "tokens"
    trainer = LanguageTrainer

    def label_space(self, job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
        if job.label_column is None:
            refuse_without_labels(job, "num_labels")
            return NO_LABELS
        space = label_space(corpus, None, job.num_labels)
        if space.multilabel:
            raise JobError(
                "label_column: several labels a text are for task=multilabel; a language model has "
                "one a text, or none"
            )
        return space

    def check_labels(
        self,
        job: DistillJob,
        space: LabelSpace,
        train: LabelledCorpus,
        validation: LabelledCorpus | None,
    ) -> None:
        """Labels are beside the task: a corpus may have none."""

    def metrics(self, space: LabelSpace, soft: bool) -> Sequence[str]:
        return METRICS

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        job, data = plan.job, plan.data
        recipe = _recipe(plan)
        if job.rejected_column is not None and not recipe.has_prompt:
            raise JobError(
                "rejected_column: needs a prompt that both responses answer, and text_format=text "
                "has none; set text_format=plain or text_format=chat"
            )
        for labelled in filter(None, (data.train, data.validation)):
            labelled.corpus.require_format(recipe.text_format, f"text_format {recipe.text_format}")
        student, tokenizer = load_language_student(
            job, job, data.space, data.train.texts(), job.dropout
        )
        if plan.warns:
            data.train.warn_of_unknown(tokenizer)
        recipe.check(tokenizer)
        most = choose_row_length(job.max_length, tokenizer, student.language_model)
        if job.packing == "document_mask":
            check_document_mask(student)
        teachers = token_teachers(plan, tokenizer)
        encoding = Encoding(tokenizer, recipe, most)
        data, texts = data.encoded_once(
            "train", tokenizer, most, lambda: learnable(job, plan.data, teachers, encoding)
        )
        data, validation = validation_set(plan, data, encoding)
        return Built(
            model=LanguageModel(student, objective(student)),
            tokenizer=tokenizer,
            max_length=most,
            train=train_set(plan, data, teachers, texts, encoding),
            validation=validation,
            data=data,
        )

    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        job, data = plan.job, plan.data
        card = LanguageCard(
            recipe=_recipe(plan),
            max_length=built.max_length,
            text_columns=job.text_column,
            space=data.space,
            metric=data.metric,
            **plan.adapter_base(),
        )
        save_language_student(folder, model.student, built.tokenizer, model.objective, card)


def _recipe(plan: Plan) -> Recipe:
    """Text format: that of the token teachers, if there are any."""
    read = {r.source for term in plan.terms if term.reads_predictions for r in term.readings}
    teachers = [plan.data.sources[name].teacher for name in sorted(read)]
    return plan.job.recipe(teachers, plan.job.text_column)
