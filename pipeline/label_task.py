"""Students of classes, of numbers, or of a teacher's feature alone."""

from collections.abc import Sequence
from pathlib import Path

from ..cache_schemas.errors import CorpusError, JobError
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.labels import NO_LABELS, LabelSpace, label_space, require_variety
from ..stages.distill.embedding_student import has_length_1
from ..stages.distill.evaluation import metric_names
from ..stages.distill.export import StudentCard, save_student
from ..stages.distill.model import DistillModel, TrainedModel
from ..stages.distill.projectors import WithProjector
from ..stages.distill.student_source import default_max_length, load_student
from ..stages.distill.tokens import Tokens, choose_max_length
from .distill_job import DistillJob
from .labelled_corpus import LabelledCorpus
from .task import Built, MakeObjective, Plan, Task, refuse_without_labels
from .terms import Term

LENGTH_ROWS = 64
"""Number of rows checked for unit length."""


class LabelTask(Task):
    """A student whose head predicts labels, or which has none and meets features."""

    scores = "output"

    def label_space(self, job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
        corpus.require_format(None, "a student of labels and features")
        if job.label_column is not None:
            assert job.task != "language"
            assert job.task != "masked_language"
            assert job.task != "embedding"
            return label_space(corpus, job.task, job.num_labels)
        if any(term.objective.reads.labels for term in terms):
            raise JobError("job key 'label_column' is missing; only objective=feature needs none")
        refuse_without_labels(job, "task", "num_labels")
        return NO_LABELS

    def check_labels(
        self,
        job: DistillJob,
        space: LabelSpace,
        train: LabelledCorpus,
        validation: LabelledCorpus | None,
    ) -> None:
        _require_labels(space, train, "learn")
        if job.num_labels is None:
            require_variety(train.corpus, space, train.labels)
        if validation is not None:
            _require_labels(space, validation, "validate by")

    def metrics(self, space: LabelSpace, soft: bool) -> Sequence[str]:
        return metric_names(space, soft)

    def learns_features_alone(self, space: LabelSpace) -> bool:
        return space.task == "none"

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        job, data = plan.job, plan.data
        student, tokenizer = load_student(job, data.space, data.train.texts(), job.dropout, job)
        if plan.warns:
            data.train.warn_of_unknown(tokenizer)
        usual = default_max_length(job, data.space)
        max_length = choose_max_length(job.max_length, tokenizer, student.backbone, usual)
        model = DistillModel(student, objective(student))

        def tokens(what: str, labelled: LabelledCorpus) -> Tokens:
            found = data.encoded_once(
                what, tokenizer, max_length, lambda: labelled.tokens(tokenizer, max_length)
            )
            ids = found.values["input_ids"]
            data.require_same_tokens(labelled, ids, found.offsets, tokenizer)
            return found

        validation = None
        pad_left = tokenizer.padding_side == "left"
        if data.validation is not None:
            read = tokens("validation", data.validation)
            validation = data.validation.dataset(read, data.validation_gathers(pad_left))
            validation.answers = data.measured.answers(model.objective, data.space)
        gathers = data.gathers(plan.seed, pad_left)
        return Built(
            model=model,
            tokenizer=tokenizer,
            max_length=max_length,
            train=data.train.dataset(tokens("train", data.train), gathers),
            validation=validation,
            data=data,
        )

    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        student = model.student
        card = StudentCard(
            space=plan.data.space,
            pooling=student.pooling,
            dropout=student.dropout,
            max_length=built.max_length,
            text_columns=plan.job.text_column,
            label_column=plan.job.label_column,
            label_separator=plan.job.label_separator,
            metric=plan.data.metric,
            **plan.adapter_base(),
        )
        save_student(folder, student, built.tokenizer, model.objective, card, _has_length_1(plan))


def _require_labels(space: LabelSpace, labelled: LabelledCorpus, purpose: str) -> None:
    if space.task != "none" and not labelled.labelled:
        source = labelled.corpus.sources[0]
        raise CorpusError(f"corpus {source}: no row has a label; nothing to {purpose}")


def _has_length_1(plan: Plan) -> bool:
    """Whether the first feature that is learned has length 1."""
    learned = [term for term in plan.terms if issubclass(term.objective, WithProjector)]
    if not learned:
        return False
    reading = learned[0].readings[0]
    rows = plan.data.train.cache_rows[reading.source]
    rows = rows[rows >= 0]
    return has_length_1(plan.data.sources[reading.source].feature.gather(rows[:LENGTH_ROWS]))
