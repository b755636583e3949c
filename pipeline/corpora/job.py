"""The keys of a `corpus` job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ...cache_schemas.features import TableName
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys, made_rules, make
from .rules import RULES, AnyRule, CachedTeacher

MOST = 254
"""Generators, and rules: a decision about a response is one byte."""


class GeneratorKeys(CachedTeacher):
    """Responses of one teacher in a cache."""

    tokenizer: str | None = Field(
        default=None,
        description="folder or hub id of the teacher's tokenizer, which decodes responses that the "
        "cache has as tokens alone; default the hub id that the teacher came from",
    )
    share: float | None = Field(
        default=None, gt=0, description="its share of the responses that are kept, beside others"
    )


class CorpusJob(TextFormatKeys):
    """Keys of a `corpus`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: LocalFolder | None = Field(default=None, description="folder of the cache of responses")
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    tokenizer: str | None = Field(
        default=None,
        description="folder or hub id of the teacher's tokenizer, for responses that are tokens "
        "alone",
    )
    generators: dict[TableName, GeneratorKeys] = Field(
        default_factory=dict,
        max_length=MOST,
        description="several, instead of cache: name -> {cache, teacher, tokenizer, share}",
    )
    predictions: Path | None = Field(
        default=None,
        description="instead of a cache: file that `predict` wrote for the rows of the corpus",
    )
    corpus: Corpora = Field(min_length=1, description="files or folders of the prompts")
    text_column: Names = Field(
        min_length=1, description="columns of the text segments, in order, as the teacher had them"
    )
    label_column: str | None = Field(default=None, description="column of labels; kept")
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    output: Path | None = Field(default=None, description="new .parquet file to write to")
    rejected: Path | None = Field(
        default=None,
        description="new .parquet or .jsonl file of the responses that are not kept, with the rule",
    )
    rules: tuple[AnyRule, ...] = Field(
        default=(),
        max_length=MOST,
        description="which responses are kept: a list of {rule: NAME, ...}, each applied to what "
        "the ones before it keep",
    )
    write: Literal["responses", "kept_prompts", "failed_prompts", "pairs"] = Field(
        default="responses",
        description="responses: a row for each one that is kept; kept_prompts: a row for each "
        "prompt with such a one; failed_prompts: for each without; pairs: for each to which both "
        "of two generators have one, the first's and, as `rejected`, the second's",
    )
    response_name: str = Field(default="response", description="name of the column of responses")
    seed: int = Field(
        default=0, ge=0, description="of the choice among responses where there are shares"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(
        default=False, description="leave bad rows, and rows that are not cached, out and list them"
    )

    @field_validator("rules", mode="before")
    @classmethod
    def _each_rule(cls, value: Any) -> Any:
        return made_rules(value, RULES, "rules")

    @field_validator("generators", mode="before")
    @classmethod
    def _each_generator(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: make(GeneratorKeys, own, f"generator {name}") if isinstance(own, Mapping) else own
            for name, own in value.items()
        }

    @field_validator("output")
    @classmethod
    def _is_parquet(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".parquet":
            raise ValueError("is no .parquet file, which has room for where its rows come from")
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> "CorpusJob":
        named = [self.cache is not None, bool(self.generators), self.predictions is not None]
        if sum(named) != 1:
            raise ValueError("cache, generators, predictions: name one of them")
        if self.cache is None and (self.teacher or self.tokenizer):
            raise ValueError("teacher, tokenizer: are of cache; name them in generators")
        shared = [each.share is not None for each in self.generators.values()]
        if any(shared) and not all(shared):
            raise ValueError("generators: give each one a share, or none")
        return self

    @model_validator(mode="after")
    def _pairs_two_generators(self) -> "CorpusJob":
        if self.write == "pairs" and len(self.generators) != 2:
            raise ValueError(
                f"write=pairs: is of two generators, and there are {len(self.generators)}; name "
                "two in generators, the preferred one first"
            )
        if self.write == "pairs" and any(each.share for each in self.generators.values()):
            raise ValueError("write=pairs: takes one response of each generator; leave share out")
        return self

    @model_validator(mode="after")
    def _rules_have_what_they_read(self) -> "CorpusJob":
        names = [rule.shown for rule in self.rules]
        if again := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rules: two are called {again!r}; give one a name")
        if self.label_column is None and any(rule.rule == "label" for rule in self.rules):
            raise ValueError("rules: label needs labels; set label_column")
        return self

    def named_generators(self) -> dict[str, GeneratorKeys]:
        """Generators by name; one by itself has the name of its cache."""
        if self.cache is None:
            return self.generators
        keys = {"cache": self.cache, "teacher": self.teacher, "tokenizer": self.tokenizer}
        return {self.cache.absolute().name: GeneratorKeys.model_validate(keys)}
