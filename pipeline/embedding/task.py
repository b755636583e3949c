"""Students that embed texts, alone or as queries and passages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError, StudentSourceError
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import NO_LABELS, LabelSpace
from ...stages.corpus.reading import column_name
from ...stages.distill.embedding.dataset import EmbeddingDataset
from ...stages.distill.embedding.export import (
    SavedTower,
    require_exportable,
    save_embedding_student,
    save_towers,
)
from ...stages.distill.embedding.groups import GroupTokens, Side, TextGroups, encode_texts
from ...stages.distill.embedding.model import EmbeddingModel, EmbeddingTrainer
from ...stages.distill.embedding.student import EmbeddingSettings, EmbeddingStudent, TwoTowers
from ...stages.distill.export import StudentCard
from ...stages.distill.model import TrainedModel
from ...stages.distill.settings import StudentSettings
from ...stages.distill.student_source import (
    check_student,
    declared_dense,
    default_max_length,
    load_student,
)
from ...stages.distill.tokens import Tokens, choose_max_length
from ...stages.embeddings.prompts import Prompts, both
from ..distill_job import DistillJob
from ..jobs import make
from ..labelled_corpus import LabelledCorpus
from ..messages import LOGGER
from ..task import Built, MakeObjective, Plan, Task
from ..terms import Term
from .data import EmbeddingData
from .fits import embedding_dim, normalizes
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
        dim = embedding_dim(job, plan.terms, data.sources)
        normalize = normalizes(job, plan.terms, data.sources, data.joined)
        query, own = _tower(job, job, data, dim, normalize)
        student: EmbeddingStudent | TwoTowers = query
        passage = own
        if job.tower == "own":
            second, passage = _tower(_of_passages(job), job, data, query.dim, normalize)
            student = TwoTowers(query, second)
        if plan.warns:
            data.train.warn_of_unknown(own[0])
            _tell_absent(data.joined.groups)
        for cut in job.prefix_dims:
            if cut >= student.dim:
                raise JobError(
                    f"matryoshka_dims {cut}: an embedding has {student.dim} numbers; choose fewer"
                )
        model = EmbeddingModel(student, objective(student), job.prefix_dims, data.passages_of)
        _refuse_weights_of_one_width(model, job)
        model.parts.most_rows = job.mini_batch_size

        prompts = prompts_of(job, len(job.text_column))

        def dataset(what: str, labelled: LabelledCorpus, train: bool) -> EmbeddingDataset:
            joined = data.joined if train else data.held_out
            assert joined is not None

            def encoded(
                name: str, side: Side, chosen: npt.NDArray[np.bool_] | None = None
            ) -> Tokens:
                tokens: Tokens = data.encoded_once(
                    f"{what}{name}",
                    *side,
                    lambda: encode_texts(side, joined.groups, prompts, chosen),
                )
                return tokens

            queries, groups = joined.groups.queries, joined.groups
            if job.tower == "shared":
                tokens = GroupTokens(encoded("", own), groups.places, groups.words)
            else:
                read = job.tower == "own" and not queries.all()
                rest = encoded(" passages", passage, ~queries) if read else None
                first = encoded(" queries", own, queries)
                tokens = GroupTokens(first, groups.places, groups.words, job.tower, rest)
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
        return BuiltTowers(
            model=model,
            tokenizer=own[0],
            max_length=own[1],
            train=dataset("train", data.train, train=True),
            validation=validation,
            data=data,
            passage=passage,
        )

    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        job, student, data = plan.job, model.student, plan.data
        assert isinstance(built, BuiltTowers)
        assert isinstance(data, EmbeddingData)
        prompts = prompts_of(job, len(job.text_column))
        of_teacher = None if data.passages_of is None else data.sources[data.passages_of]

        def card(tower: EmbeddingStudent, most: int, read: Prompts) -> StudentCard:
            return StudentCard(
                space=NO_LABELS,
                pooling=tower.inner.pooling,
                dropout=job.dropout,
                max_length=most,
                text_columns=(column_name(job.text_column[0]),),
                label_column=None,
                metric=plan.data.metric,
                embedding=EmbeddingSettings(
                    embedding_dim=tower.dim,
                    has_dense=tower.dense is not None,
                    normalize=tower.normalize,
                    **read.model_dump(),
                    matryoshka_dims=job.prefix_dims,
                    passage_tower=job.tower,
                    passage_teacher=None if of_teacher is None else of_teacher.fingerprint,
                ),
                **plan.adapter_base(),
            )

        if isinstance(student, EmbeddingStudent):
            own = card(student, built.max_length, prompts)
            save_embedding_student(folder, student, built.tokenizer, model.objective, own)
            return
        assert isinstance(student, TwoTowers)
        query, passage = prompts.query_prompt, prompts.passage_prompt
        towers = (
            SavedTower(
                student.query,
                built.tokenizer,
                card(student.query, built.max_length, both(query)),
            ),
            SavedTower(
                student.passage,
                built.passage[0],
                card(student.passage, built.passage[1], both(passage)),
            ),
        )
        save_towers(folder, towers, model.objective, prompts)


@dataclass(frozen=True, slots=True)
class BuiltTowers(Built):
    """What a student that embeds is built of."""

    passage: Side
    """How passages are read: as queries, unless they have a tower of their own."""


def _tower(
    settings: StudentSettings,
    job: DistillJob,
    data: EmbeddingData,
    dim: int | None,
    normalize: bool,
) -> tuple[EmbeddingStudent, Side]:
    """A student, its tokenizer and the most tokens that it reads."""
    texts = data.joined.groups.texts.texts()
    inner, tokenizer = load_student(settings, NO_LABELS, texts, job.dropout, job, embeds=True)
    require_exportable(inner, settings.student)
    start, layers = declared_dense(settings)
    student = EmbeddingStudent(inner, dim, normalize, start)
    if dropped := layers[1:] if student.dense is start and start is not None else layers:
        LOGGER.warning(
            f"student {settings.student}: starts without the layers after its pooling "
            f"({'; '.join(dropped)}), which do not fit embeddings of {student.dim} numbers"
        )
    usual = default_max_length(settings, NO_LABELS)
    most = choose_max_length(settings.max_length, tokenizer, student.backbone, usual)
    return student, (tokenizer, most)


def check_passage_tower(job: DistillJob) -> None:
    """Raises StudentSourceError for a tower of passages that cannot be loaded, by its configuration
    alone."""
    try:
        check_student(_of_passages(job))
    except StudentSourceError as error:
        raise StudentSourceError(f"passage_tower=own: {error}") from error


def _of_passages(job: DistillJob) -> StudentSettings:
    """What the passages' own tower starts from."""
    if job.passage_student is None:
        found = {key: getattr(job, key) for key in StudentSettings.model_fields}
    else:
        found = {"student": job.passage_student, "max_length": job.max_length}
    if job.passage_student_layers is not None:
        found["student_layers"] = job.passage_student_layers
    return make(StudentSettings, found)


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
