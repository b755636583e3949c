"""Students that embed texts, alone or as queries and passages."""

from collections.abc import Sequence
from pathlib import Path

from ...cache_schemas.errors import JobError
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import NO_LABELS, LabelSpace
from ...stages.corpus.reading import column_name
from ...stages.distill.embedding.dataset import EmbeddingDataset
from ...stages.distill.embedding.export import require_exportable, save_embedding_student
from ...stages.distill.embedding.groups import TextGroups, encode_groups
from ...stages.distill.embedding.model import EmbeddingModel, EmbeddingTrainer
from ...stages.distill.embedding.student import EmbeddingSettings, EmbeddingStudent
from ...stages.distill.export import StudentCard
from ...stages.distill.model import TrainedModel
from ...stages.distill.student_source import default_max_length, load_student
from ...stages.distill.tokens import choose_max_length
from ..distill_job import DistillJob
from ..messages import LOGGER
from ..student_data import LabelledCorpus
from ..task import Built, MakeObjective, Plan, Task
from ..terms import Term
from .data import EmbeddingData, embedding_dim, normalizes
from .keys import prompts_of


class EmbeddingTask(Task):
    """A student that embeds."""

    scores = "pooled"
    trainer = EmbeddingTrainer

    def label_space(self, job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
        return NO_LABELS

    def check_labels(
        self,
        job: DistillJob,
        space: LabelSpace,
        train: LabelledCorpus,
        validation: LabelledCorpus | None,
    ) -> None:
        """Scores are read with the texts: `data.py`."""

    def metrics(self, space: LabelSpace, soft: bool) -> Sequence[str]:
        return ()

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        job, data = plan.job, plan.data
        assert isinstance(data, EmbeddingData)
        texts = data.joined.groups.texts.texts()
        inner, tokenizer = load_student(job, NO_LABELS, texts, job.dropout, job, embeds=True)
        if plan.warns:
            data.train.warn_of_unknown(tokenizer)
            _tell_absent(data.joined.groups)
        require_exportable(inner, job.student)
        dim = embedding_dim(job, plan.terms, data.sources)
        student = EmbeddingStudent(inner, dim, normalizes(job, plan.terms, data))
        for cut in job.prefix_dims:
            if cut >= student.dim:
                raise JobError(
                    f"matryoshka_dims {cut}: an embedding has {student.dim} numbers; choose fewer"
                )
        usual = default_max_length(job, NO_LABELS)
        max_length = choose_max_length(job.max_length, tokenizer, student.backbone, usual)
        model = EmbeddingModel(student, objective(student), job.prefix_dims)
        _refuse_weights_of_one_width(model, job)
        model.parts.most_rows = job.mini_batch_size

        prompts = prompts_of(job, len(job.text_column))

        def dataset(what: str, labelled: LabelledCorpus, train: bool) -> EmbeddingDataset:
            joined = data.joined if train else data.held_out
            assert joined is not None
            tokens = data.encoded_once(
                what,
                tokenizer,
                max_length,
                lambda: encode_groups(tokenizer, joined.groups, max_length, prompts),
            )
            features = data.gathers(plan.seed) if train else data.validation_gathers()
            found = EmbeddingDataset(
                tokens,
                labelled.labels,
                features,
                {name: joined.places[name] for name in features},
                labelled.names,
                labelled.weights,
            )
            found.has_loss = train or "loss" in data.metric_names
            return found

        validation = None
        if data.validation is not None:
            validation = dataset("validation", data.validation, train=False)
            validation.measure = data.measure(model.objective)
        return Built(
            model=model,
            tokenizer=tokenizer,
            max_length=max_length,
            train=dataset("train", data.train, train=True),
            validation=validation,
            data=data,
        )

    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        job, student = plan.job, model.student
        assert isinstance(student, EmbeddingStudent)
        card = StudentCard(
            space=NO_LABELS,
            pooling=student.inner.pooling,
            dropout=job.dropout,
            max_length=built.max_length,
            text_columns=(column_name(job.text_column[0]),),
            label_column=None,
            metric=plan.data.metric,
            embedding=EmbeddingSettings(
                embedding_dim=student.dim,
                has_dense=student.dense is not None,
                normalize=student.normalize,
                **prompts_of(job, len(job.text_column)).model_dump(),
                matryoshka_dims=job.prefix_dims,
            ),
            **plan.adapter_base(),
        )
        save_embedding_student(folder, student, built.tokenizer, model.objective, card)


def _tell_absent(groups: TextGroups) -> None:
    """Say how many candidates rows lack: losses leave them out."""
    if groups.absent:
        LOGGER.info(
            f"{groups.absent:,} of {groups.places.size:,} texts of the training rows are blank, "
            "and left out of their rows"
        )


def _refuse_weights_of_one_width(model: EmbeddingModel, job: DistillJob) -> None:
    """Refuse objectives with weights that fit the whole embedding alone, beside its prefixes."""
    for part in model.objective.parts if job.prefix_dims else ():
        if any(True for _ in part.parameters()):
            name = part.label or job.objective_name
            raise JobError(
                f"matryoshka_dims: objective {name} has weights for embeddings of "
                f"{model.student.dim} numbers, and prefixes have fewer; use projector=none or "
                "another objective, or leave matryoshka_dims out"
            )
