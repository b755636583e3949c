"""The keys of `evaluate` and `predict` jobs, about a student that was trained."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..cache_schemas.errors import RunError
from ..cache_schemas.locations import Source
from ..stages.distill.settings import DEFAULT_NEW_TOKENS
from ..stages.embeddings.prompts import PromptName
from ..stages.retrieval.metrics import USUAL_METRICS, Similarity, depth_of
from ..stages.retrieval.quantization import Precision
from .jobs import Corpora, LabelColumns, LocalFolder, Names, Separator, TextFormatKeys

_OF_CORPORA = {
    *("picture_column", "class_names", "templates", "caption_cache", "caption_teacher"),
    *("text_column", "label_column", "label_separator", "rejected_column"),
    *("limit", "max_new_tokens", "encoding", "delimiter"),
}
_NOT_OF_MTEB = {
    *("split", "retrieval_metrics", "similarity", "precision", "truncate_dim"),
    *("cache", "teacher", "feature"),
}


_OF_PICTURES = {"class_names", "templates", "caption_cache", "caption_teacher"}


def _one_is_a_list(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) else value


Width = Annotated[int, Field(ge=1)]
Precisions = Annotated[
    tuple[Precision, ...],
    BeforeValidator(_one_is_a_list, json_schema_input_type=Precision | tuple[Precision, ...]),
]
Widths = Annotated[
    tuple[Width, ...],
    BeforeValidator(_one_is_a_list, json_schema_input_type=Width | tuple[Width, ...]),
]


class EvaluateJob(TextFormatKeys):
    """Evaluation of a student."""

    student: Path = Field(description="folder that `distill` wrote")
    corpus: tuple[Source, ...] = Field(default=(), description="files or folders with labels")
    text_column: tuple[str, ...] = Field(
        default=(),
        description="columns of the text segments; default those of training; for a student that "
        "embeds single texts, two columns are pairs, of which `label_column` has the score (for "
        "spearman, pearson) or 0 and 1 (for average_precision, f1)",
    )
    beir: LocalFolder | None = Field(
        default=None,
        description="instead of a corpus, for a student that embeds: BEIR folder (corpus.jsonl, "
        "queries.jsonl, qrels/SPLIT.tsv) to search in",
    )
    mteb: Names | None = Field(
        default=None,
        min_length=1,
        description="instead of a corpus, for a student that embeds: tasks of MTEB, such as "
        "[STSBenchmark, NFCorpus], whose data the package mteb downloads",
    )
    split: str = Field(
        default="test", min_length=1, description="split of the BEIR folder's judgements"
    )
    retrieval_metrics: Names = Field(
        default=USUAL_METRICS,
        min_length=1,
        description="for `beir` and captions: ndcg@k, recall@k, precision@k, success@k, mrr@k and "
        "map@k for any k; default of captions: success, recall, ndcg@10, mrr@10",
    )
    similarity: Similarity = Field(
        default="cosine", description="of pairs, and of queries and passages: cosine, dot, euclid"
    )
    picture_column: Names | None = Field(
        default=None,
        description="column of the pictures of a corpus, as `cache` has their embeddings (such as "
        "picture:photo), for a student that embeds: its captions (text_column) find pictures and "
        "pictures captions; or, with label_column, pictures are classified (zero-shot)",
    )
    class_names: Names | None = Field(
        default=None,
        description="names of the classes of a zero-shot classification; default the labels, if "
        "they are names; labels of whole numbers count them from 0",
    )
    templates: Names = Field(
        default=("a photo of a {}.",),
        min_length=1,
        description="texts for a class of a zero-shot classification, {} its name; of several, the "
        "mean of their embeddings of length 1",
    )
    caption_cache: Path | str | None = Field(
        default=None,
        description="beside picture_column: cache of a teacher's embeddings of the captions, or of "
        "the classes' texts, whose own figures stand beside the student's",
    )
    caption_teacher: str | None = Field(
        default=None, description="fingerprint of the teacher in caption_cache, or a prefix"
    )
    precision: Precisions = Field(
        default=(),
        description="of pairs and with `beir`: also measure vectors that are kept in fewer bytes, "
        "as int8, uint8, binary or ubinary, beside those of float32",
    )
    truncate_dim: Widths = Field(
        default=(), description="the same of vectors cut to so many of their first numbers"
    )
    rescore_multiplier: int | None = Field(
        default=None,
        ge=1,
        description="with `beir` and `precision`: find so many times as many passages by their "
        "codes, and of these the best by whole queries",
    )
    label_column: LabelColumns | None = Field(default=None, description="default that of training")
    label_separator: Separator | None = Field(
        default=None,
        description="what separates several labels in a cell of text; default that of training",
    )
    rejected_column: str | None = Field(
        default=None,
        min_length=1,
        description="column of a rejected response to each prompt, for metrics of preferences of a "
        "language model; with `cache`, those against a reference's own_log_probs",
    )
    cache: Path | str | None = Field(
        default=None,
        description="cache of a teacher to compare the student with, on the texts that it holds; "
        "with `beir`, of the passages' embeddings, which the student's queries are to find",
    )
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    feature: str | None = Field(
        default=None,
        description="feature to compare with; default: logits or score of a student of labels, the "
        "predictions of tokens of a language model, else the first one",
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(default=False, description="skip invalid rows and list them")
    batch_size: int = Field(default=64, ge=1, description="examples per batch")
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="generate up to this many tokens for each prompt with a language model, and "
        "compare with the corpus's responses",
    )
    prompt_name: PromptName | None = Field(
        default=None,
        description="of a student that reads queries and passages behind different prompts, beside "
        "a cache, and with `mteb` of texts that are neither: query or document (a passage)",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps, xpu")

    @field_validator("retrieval_metrics")
    @classmethod
    def _are_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        depth_of(value)
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> "EvaluateJob":
        named = [key for key in ("corpus", "beir", "mteb") if getattr(self, key)]
        if len(named) != 1:
            raise ValueError(
                "corpus, beir, mteb: name one of them (files with labels, a BEIR folder, or tasks)"
            )
        if named != ["corpus"]:
            without = _OF_CORPORA | (_NOT_OF_MTEB if named == ["mteb"] else set())
            given = self.model_fields_set & without
            if given := {name for name in given if getattr(self, name) not in (None, (), False)}:
                raise ValueError(f"{', '.join(sorted(given))}: not with {named[0]}; leave out")
            return self
        of_beir = {"split", *(() if self.picture_column else ("retrieval_metrics",))}
        if given := self.model_fields_set & of_beir:
            raise ValueError(f"{', '.join(sorted(given))}: needs beir; name its folder")
        return self

    @model_validator(mode="after")
    def _is_about_pictures(self) -> "EvaluateJob":
        given = self._chosen(_OF_PICTURES)
        if self.picture_column is None:
            if given:
                raise ValueError(
                    f"{', '.join(given)}: of pictures; name picture_column, or leave out"
                )
            return self
        if self.label_separator is not None:
            raise ValueError("label_separator: a picture has one class; leave it out")
        if self.cache is None:
            raise ValueError("picture_column: needs the cache of their embeddings; name it")
        if self.caption_teacher is not None and self.caption_cache is None:
            raise ValueError("caption_teacher: needs caption_cache")
        if self.label_column is None:
            of_classes = self._chosen({"class_names", "templates"})
            if of_classes:
                raise ValueError(
                    f"{', '.join(of_classes)}: of a zero-shot classification; name label_column"
                )
            return self
        if not isinstance(self.label_column, str):
            raise ValueError("label_column: a picture has one class; name one column")
        if of_captions := self._chosen({"text_column", "retrieval_metrics"}):
            raise ValueError(
                f"{', '.join(of_captions)}: of captions, and label_column is of a zero-shot "
                "classification; leave one out"
            )
        return self

    def _chosen(self, names: set[str]) -> list[str]:
        """Some keys that are given, and are not as they would be without."""
        fields = type(self).model_fields
        given = self.model_fields_set & names
        return sorted(name for name in given if getattr(self, name) != fields[name].default)

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r}: needs one {{}}, where the name of the class goes")
        return value

    @field_validator("class_names")
    @classmethod
    def _are_different(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(set(value)) < len(value) or not all(map(str.strip, value))):
            raise ValueError("a name is there twice, or blank; name each class once")
        return value

    @model_validator(mode="after")
    def _keeps_what_is_compared(self) -> "EvaluateJob":
        given = self.model_fields_set & {"precision", "truncate_dim", "rescore_multiplier"}
        if given and self.beir is None and len(self.text_column) != 2:
            raise ValueError(
                f"{', '.join(sorted(given))}: of searches and of pairs; name beir, or two columns "
                "in text_column and their label_column"
            )
        if self.rescore_multiplier is not None and (self.beir is None or not self.precision):
            raise ValueError(
                "rescore_multiplier: is of a search among quantised passages; name beir and a "
                "precision such as ubinary"
            )
        return self

    @property
    def cache_keys(self) -> dict[str, Any]:
        """The keys of its teacher, as those of a cache to learn from."""
        return {"cache": self.cache, "teacher": self.teacher, "feature": self.feature}


class PredictJob(TextFormatKeys):
    """Predictions of a student."""

    student: Path = Field(description="folder that `distill` wrote")
    corpus: Corpora = Field(min_length=1, description="files or folders of texts")
    output: Path = Field(description="new .parquet or .jsonl file to write to")
    text_column: Names = Field(
        default=(),
        description="columns of the text segments; default those of training; for a language model "
        "that responds to prompts, the column of responses is not read and may be left out",
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(default=False, description="skip invalid rows and list them")
    batch_size: int = Field(default=64, ge=1, description="examples per batch")
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description=f"maximum tokens a language model generates; default {DEFAULT_NEW_TOKENS}",
    )
    prompt_name: PromptName | None = Field(
        default=None,
        description="of a student that reads queries and passages behind different prompts: which "
        "the texts are, query or document (a passage)",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps, xpu")


def batch_too_large(batch_size: int) -> RunError:
    """The error where memory does not suffice for a student and a batch."""
    return RunError(
        f"device memory: a batch of {batch_size} examples does not fit beside the student; use a "
        "smaller batch_size, or a device with more memory"
    )
