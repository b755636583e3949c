"""`evaluate` of a language model: how well it predicts a corpus, and its own responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import send_to_device

from ...cache_schemas.codings import SamplesCoding
from ...cache_schemas.errors import JobError
from ...cache_schemas.features import GENERATED_IDS, GENERATED_TEXT
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.labels import MISSING, NO_LABELS
from ...stages.distill.batches import DistillDataset
from ...stages.distill.controls import Control
from ...stages.distill.export import student_folder
from ...stages.distill.language.batches import PredictedRows, pack
from ...stages.distill.language.evaluation import TokenSums, respond, response_metrics
from ...stages.distill.language.export import LanguageCard, load_language_folder
from ...stages.distill.language.pairs import LogProbs, paired
from ...stages.distill.language.student import LanguageStudent
from ...stages.distill.language.teachers import Answering
from ...stages.distill.language.trainer import LanguageModel
from ...stages.distill.objectives.base import Sizes
from ...stages.distill.objectives.options import SOURCE, ObjectiveOptions
from ...stages.distill.objectives.undistilled import UndistilledObjective
from ...stages.language.recipe import response_of
from ...stages.language.tokens import TokenTexts, end_ids
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import Cache
from ..answers import Answers, missing_keys, open_answers
from ..corpora.generators import CachedResponses, Prompts
from ..corpora.rules import CachedTeacher
from ..environment import choose_device
from ..jobs import make, require_two_responses
from ..objective_keys import CacheKeys
from ..sources import Columns, Source, is_of_own_tokens, teaches_tokens
from ..student_jobs import EvaluateJob
from .datasets import Encoding, compared_tokens
from .pairs import OWN_LOG_PROBS, equal_responses, summed_log_probs
from .teacher_texts import check_tokenizer


def evaluate_language(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of a finished student on a corpus."""
    model, tokenizer, card = load_language_folder(folder)
    corpus, other = _corpora(job, card)
    corpus.require_format(card.recipe.text_format, f"student {job.student}")
    encoding = Encoding(tokenizer, card.recipe, card.max_length)
    texts = encoding.texts(corpus)
    if not texts.predicted.sum():
        raise JobError(f"corpus {job.corpus[0]}: has nothing to predict within {card.max_length}")
    rejected = None if other is None else _Rejected(other, encoding.texts(other))
    known = {} if rejected is None else rejected.references(job, corpus, texts, tokenizer)
    compares = job.cache is not None and not known
    teacher = Compared.opened(job, corpus) if compares else None
    answers: dict[str, Answering] = {}
    if teacher is not None and teacher.source is not None:
        answers[SOURCE] = compared_tokens(teacher.source, teacher.rows, texts, corpus, encoding)
    student = LanguageStudent(model.to(choose_device(job.device)), NO_LABELS, dropout=0.0)
    rows = pack(texts, "none", int(texts.lengths.max()), encoding.pad_id, answers)
    if rejected is not None:
        rows = paired(rows, rejected.texts, known)
    metrics = predicted(student, rows, job.batch_size, TokenSums())
    if job.max_new_tokens is not None:
        responses = _responses(job, student, tokenizer, card, texts)
        references = [response_of(segments) for segments in _examples(corpus)]
        metrics |= response_metrics(responses, references)
        if teacher is not None:
            metrics |= teacher.response_metrics(job, folder, corpus, responses)
    compared = {"compared_examples": int((teacher.rows >= 0).sum())} if answers and teacher else {}
    return {
        "examples": len(texts),
        **compared,
        "truncated_examples": int(texts.truncated.sum()),
        "skipped_rows": list(corpus.skipped),
        "metrics": metrics,
    }


def _corpora(job: EvaluateJob, card: LanguageCard) -> tuple[Corpus, Corpus | None]:
    """The texts, and the same prompts with rejected responses, if there are any."""
    own = job.text_column or card.text_columns
    rejected = () if job.rejected_column is None else (*own[:-1], job.rejected_column)
    if job.rejected_column is not None:
        require_two_responses(own, job.rejected_column)
    columns = Columns.of(own, [], rejected)
    corpus = read_corpus(
        job.corpus,
        columns.names,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        form=job.file_format,
        several_chats=job.rejected_column is not None,
    )
    if not rejected:
        return corpus, None
    if not card.recipe.has_prompt:
        raise JobError("rejected_column: the student's texts have no prompt to respond to")
    equal, problem = equal_responses(corpus, columns, job.skip_bad_rows)
    corpus = corpus.without(equal, problem) if len(equal) else corpus
    return corpus.of_columns(columns.student), corpus.of_columns(columns.rejected)


def _examples(corpus: Corpus) -> list[tuple[str, ...]]:
    return [segments for batch in corpus.batches() for segments in batch]


def predicted(
    student: LanguageStudent, rows: PredictedRows, batch_size: int, sums: TokenSums
) -> dict[str, float]:
    """Perplexity and related metrics, over all predicted tokens, what compares with teachers'
    answers, and preferences among two responses; added up in `sums`."""
    sizes = Sizes(student.dim, 1, regression=False, feature_shape=None)
    model = LanguageModel(student, UndistilledObjective(ObjectiveOptions(), sizes)).eval()
    dataset = DistillDataset(rows, np.full(len(rows), MISSING), {})
    device = next(student.parameters()).device
    for start in range(0, len(dataset), batch_size):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        sums.add(model, send_to_device(dataset.__getitems__(indices), device), rows)
    return sums.metrics()


@dataclass(frozen=True, slots=True)
class _Rejected:
    """Rejected responses to the prompts of a corpus, and their tokens."""

    corpus: Corpus
    texts: TokenTexts

    def references(
        self, job: EvaluateJob, corpus: Corpus, texts: TokenTexts, tokenizer: Any
    ) -> dict[str, LogProbs]:
        """Log-probabilities of both responses under a reference, if the job names a cache of those;
        none else. Raises MissingKeysError for texts that are not cached."""
        if job.cache is None:
            return {}
        answers = open_answers(make(CacheKeys, job.cache_keys))
        name = job.feature or OWN_LOG_PROBS
        held = name in answers.cache.features
        if not held or not is_of_own_tokens(answers.cache.feature_spec(name)):
            return {}
        spec, columns = answers.cache.feature_spec(name), []
        for each, own in ((corpus, texts), (self.corpus, self.texts)):
            read = answers.of(name, [each])
            rows = read.cache.find(each.keys(), name)
            if (rows < 0).any():
                raise missing_keys(read.cache, each, np.flatnonzero(rows < 0), [name])
            source = Source(read, spec, (), Control("none"), None)
            check_tokenizer(source.teacher, tokenizer, cross_tokenizer=False)
            columns.append(summed_log_probs(source, rows, own, each, tokenizer))
        return {SOURCE: np.stack(columns, axis=1)}


def _responses(
    job: EvaluateJob,
    student: LanguageStudent,
    tokenizer: Any,
    card: LanguageCard,
    texts: TokenTexts,
) -> list[str]:
    """The student's generated responses; for a truncated prompt, the response is empty."""
    if not card.recipe.has_prompt:
        raise JobError("max_new_tokens: the student's texts have no prompt to respond to")
    whole = np.flatnonzero(texts.lengths >= texts.prompts)
    prompts: list[Sequence[int]] = [
        texts.of(text)[: texts.prompts[text]].tolist() for text in whole.tolist()
    ]
    assert job.max_new_tokens is not None
    ends = end_ids(tokenizer, card.recipe, student.language_model.generation_config)
    responses = respond(
        student.language_model, tokenizer, prompts, job.max_new_tokens, job.batch_size, ends
    )
    of_texts = [""] * len(texts)
    for text, response in zip(whole.tolist(), responses, strict=True):
        of_texts[text] = response
    return of_texts


@dataclass(frozen=True, slots=True)
class Compared:
    """A teacher of an evaluation: its predictions of tokens, from cache rows `rows`, -1 for texts
    without; None if only its responses are compared with."""

    answers: Answers
    source: Source | None
    rows: Rows

    @classmethod
    def opened(cls, job: EvaluateJob, corpus: Corpus) -> "Compared":
        """The teacher of a job. Raises JobError where it has nothing to compare with, and
        MissingKeysError where none of the texts is cached."""
        answers = open_answers(make(CacheKeys, job.cache_keys))
        responses = _RESPONSES & {*answers.cache.features}
        feature = _feature_of_tokens(answers.cache, job.feature)
        if feature is None:
            if not responses or job.max_new_tokens is None:
                hint = "; set max_new_tokens to compare responses" if responses else ""
                raise JobError(
                    f"cache: teacher {answers.cache.teacher.fingerprint[:12]} has no predictions "
                    f"of tokens to compare a language model with (top_k, dense){hint}"
                )
            return cls(answers, None, np.full(len(corpus), -1))
        source, rows = compared_source(answers, corpus, feature)
        return cls(source.answers, source, rows)

    def response_metrics(
        self, job: EvaluateJob, folder: Path, corpus: Corpus, responses: Sequence[str]
    ) -> dict[str, float]:
        """`teacher_rouge_l` and `teacher_exact_match`: the student's responses against the
        teacher's first cached one to each prompt that has one; none without any."""
        if not _RESPONSES & {*self.answers.cache.features}:
            return {}
        path = self.answers.cache.path
        keys = make(CachedTeacher, {"cache": path, "teacher": job.teacher})
        cached = CachedResponses(SOURCE, keys, tokenizer=str(student_folder(folder)))
        segments = _examples(corpus)
        found, _ = cached.read(Prompts(corpus, segments, given_response=True))
        first = {prompt: n for n, prompt in reversed([*enumerate(found.prompts.tolist())])}
        pairs = [(responses[prompt], found.texts[n]) for prompt, n in sorted(first.items())]
        if not pairs:
            return {}
        metrics = response_metrics(*zip(*pairs, strict=True))
        return {f"teacher_{name}": value for name, value in metrics.items()}


_RESPONSES = {GENERATED_IDS, GENERATED_TEXT}


def _feature_of_tokens(cache: Cache, named: str | None) -> str | None:
    """The predictions to compare with; None for a teacher that has none, or whose responses are
    named."""
    known = distributions(cache)
    if named in _RESPONSES or not known:
        return None
    if named is None and len(known) > 1:
        raise JobError(f"feature: is missing; the teacher has {', '.join(known)}")
    if named is not None and named not in known:
        raise JobError(
            f"feature {named!r}: does not tell distributions of tokens; the teacher has "
            f"{', '.join(known)}"
        )
    return named or known[0]


def distributions(cache: Cache) -> list[str]:
    """Features that are distributions of predicted tokens."""
    specs = map(cache.feature_spec, cache.features)
    return [
        spec.name
        for spec in specs
        if teaches_tokens(spec) and not isinstance(spec.coding, SamplesCoding)
    ]


def compared_source(answers: Answers, corpus: Corpus, feature: str) -> tuple[Source, Rows]:
    """Predictions to compare with, and their cache rows, -1 for texts without. Raises
    MissingKeysError where none of the texts is cached."""
    answers = answers.of(feature, [corpus])
    rows = answers.cache.find(corpus.keys(), feature)
    if (rows < 0).all():
        raise missing_keys(answers.cache, corpus, np.flatnonzero(rows < 0), [feature])
    spec = answers.cache.feature_spec(feature)
    return Source(answers, spec, (), Control("none"), None), rows
