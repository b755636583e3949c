"""Students that are masked language models: they learn the masked tokens of a text."""

from collections.abc import Sequence
from pathlib import Path

from ...cache_schemas.errors import JobError, StudentSourceError
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import NO_LABELS, LabelSpace
from ...stages.distill.language.evaluation import MASKED_METRICS
from ...stages.distill.language.export import MaskedCard, save_masked_student
from ...stages.distill.language.source import choose_masked_length, load_masked_student
from ...stages.distill.language.trainer import LanguageModel, MaskedTrainer
from ...stages.distill.model import TrainedModel
from ...stages.language.masking import Masker
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..task import Built, MakeObjective, Plan, Task
from ..terms import Term
from .masked_data import (
    MaskedEncoding,
    maskable,
    masked_teachers,
    masked_train_set,
    masked_validation_set,
)


class MaskedLanguageTask(Task):
    """A masked language model."""

    scores = "tokens"
    trainer = MaskedTrainer

    def label_space(self, job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
        corpus.require_format(None, "a masked language model")
        if job.label_column is not None:
            raise JobError(
                "label_column: a masked language model learns no labels; leave it out, and train "
                "its folder with a label_column later"
            )
        if job.num_labels is not None:
            raise JobError("num_labels: a masked language model learns no labels; leave it out")
        return NO_LABELS

    def check_labels(
        self,
        job: DistillJob,
        space: LabelSpace,
        train: LabelledCorpus,
        validation: LabelledCorpus | None,
    ) -> None:
        """There are none; validation texts are texts, too."""
        if validation is not None:
            validation.corpus.require_format(None, "a masked language model")

    def metrics(self, space: LabelSpace, soft: bool) -> Sequence[str]:
        return MASKED_METRICS

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        job, data = plan.job, plan.data
        student, tokenizer = load_masked_student(job, data.train.texts(), job.dropout)
        if plan.warns:
            data.train.warn_of_unknown(tokenizer)
        what = f"student {job.student}"
        masker = Masker.of(tokenizer, job.masks, StudentSourceError, what)
        most = choose_masked_length(job.max_length, tokenizer, student.language_model)
        encoding = MaskedEncoding(tokenizer, masker, most)
        teachers = masked_teachers(plan, encoding)
        data, texts = data.encoded_once(
            "train", tokenizer, most, lambda: maskable(job, plan.data, encoding)
        )
        data, validation = masked_validation_set(job, data, encoding)
        return Built(
            model=LanguageModel(student, objective(student)),
            tokenizer=tokenizer,
            max_length=most,
            train=masked_train_set(data, teachers, texts, encoding, plan.seed),
            validation=validation,
            data=data,
        )

    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        card = MaskedCard(
            masks=plan.job.masks,
            max_length=built.max_length,
            text_columns=plan.job.text_column,
            metric=plan.data.metric,
        )
        save_masked_student(folder, model.student, built.tokenizer, model.objective, card)
