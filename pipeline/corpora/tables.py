"""Rows of the file: prompts with responses, or prompts alone.

prompt columns, label, prompt_id    as in the corpus; of chats, the turns with the response as last
response, sample, generator         text, its number among those of its prompt, who generated it
log_prob, tokens, finish            sum over its tokens, their number, stop, length or other;
                                    null where it is not known
origin                              hexadecimal key under which the generator's cache has it

Prompts alone have the prompt columns, the label and the id. Rejected responses also have `rule`.
Pairs have the prompt columns, the label, the id, the response of one generator, and `rejected`,
that of another; of chats, `rejected` is a chat as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...cache_schemas.chats import answered, turns_of
from ...cache_schemas.errors import CorpusError, JobError
from ...cache_schemas.keys import IntArray
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.reading import column_name
from .generators import Generator, Prompts, Responses
from .job import CorpusJob

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ID = "prompt_id"
REJECTED = "rejected"
"""Column of the responses of pairs that are not preferred."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The columns of a job's files."""

    job: CorpusJob
    head: Corpus
    given_response: bool
    has_ids: bool
    generators: Sequence[Generator]
    rules: Sequence[str]

    @property
    def texts(self) -> list[str]:
        """Names of the prompt columns."""
        names = list(map(column_name, self.job.text_column))
        return names[:-1] if self.given_response and not self.head.chats else names

    def schema(self, responses: bool, rule: bool = False) -> pa.Schema:
        """Columns and types. Raises JobError for two of one name."""
        fields = [pa.field(name, TURNS if self.head.chats else pa.string()) for name in self.texts]
        if self.job.label_column is not None and self.head.labels is not None:
            fields.append(pa.field(self.job.label_column, self.head.labels.type))
        if self.has_ids:
            fields.append(pa.field(ID if responses else "id", pa.string()))
        if responses:
            fields += [
                pa.field(self.job.response_name, pa.string()),
                pa.field("sample", pa.int32()),
                pa.field("generator", pa.string()),
                pa.field("log_prob", pa.float64()),
                pa.field("tokens", pa.int32()),
                pa.field("finish", pa.string()),
                pa.field("origin", pa.string()),
            ]
        if rule:
            fields.append(pa.field("rule", pa.string()))
        return self._of_different_names(fields)

    @property
    def schema_of_pairs(self) -> pa.Schema:
        """Columns and types of pairs. Raises JobError for two of one name."""
        kind = TURNS if self.head.chats else pa.string()
        own = [pa.field(self.job.response_name, pa.string()), pa.field(REJECTED, kind)]
        return self._of_different_names([*self.schema(responses=False), *own])

    def _of_different_names(self, fields: list[pa.Field]) -> pa.Schema:
        names = [field.name for field in fields]
        for name in names:
            if names.count(name) > 1:
                raise JobError(
                    f"column {name!r}: the corpus has one of this name, and so has the file of "
                    "responses; rename it in the corpus, or set response_name"
                )
        return pa.schema(fields)

    def of_responses(
        self, prompts: Prompts, responses: Responses, rules: IntArray | None = None
    ) -> pa.Table:
        """Rows of responses; `rules`: number, from 1, of the rule that rejects each."""
        schema = self.schema(responses=True, rule=rules is not None)
        tokens = pa.array(responses.tokens, pa.int32(), mask=responses.tokens < 0)
        columns = self._of_prompts(prompts, responses.prompts, responses.texts)
        columns += [
            pa.array(responses.texts, pa.string()),
            pa.array(responses.samples, pa.int32()),
            pa.array([self.generators[at].name for at in responses.generators], pa.string()),
            pa.array(responses.log_probs, pa.float64(), mask=np.isnan(responses.log_probs)),
            tokens,
            pa.array([each or None for each in responses.finish], pa.string()),
            pa.array(self._origins(prompts, responses), pa.string()),
        ]
        if rules is not None:
            columns.append(pa.array([self.rules[at - 1] for at in rules.tolist()], pa.string()))
        return pa.Table.from_arrays(columns, schema=schema)

    def of_pairs(self, prompts: Prompts, responses: Responses) -> pa.Table:
        """Rows of prompts to which both generators have a response: the first of each. Two that are
        equal are no pair."""
        first: list[dict[int, str]] = [{}, {}]
        each = zip(
            responses.prompts.tolist(), responses.generators.tolist(), responses.texts, strict=True
        )
        for prompt, generator, text in each:
            first[generator].setdefault(prompt, text)
        rows = [
            at for at in sorted(first[0].keys() & first[1].keys()) if first[0][at] != first[1][at]
        ]
        preferred, rejected = ([texts[at] for at in rows] for texts in first)
        at = np.array(rows, dtype=np.int64)
        columns = self._of_prompts(prompts, at, preferred)
        other = self._of_prompts(prompts, at, rejected)[0] if self.head.chats else rejected
        columns += [pa.array(preferred, pa.string()), other]
        return pa.Table.from_arrays(columns, schema=self.schema_of_pairs)

    def of_prompts(self, prompts: Prompts, rows: IntArray) -> pa.Table:
        """Rows of prompts alone."""
        schema = self.schema(responses=False)
        return pa.Table.from_arrays(self._of_prompts(prompts, rows, None), schema=schema)

    def _of_prompts(
        self, prompts: Prompts, rows: IntArray, answers: Sequence[str] | None
    ) -> list[pa.Array]:
        corpus, taken = prompts.corpus, pa.array(rows)
        if corpus.chats:
            asked = [chat for (chat,) in prompts.asked(with_response=False)]
            chats = [asked[row] for row in rows.tolist()]
            if answers is not None:
                chats = list(map(answered, chats, answers))
            columns = [pa.array(list(map(_turns, chats)), TURNS)]
        else:
            segments = corpus.segments[: len(self.texts)]
            columns = [segment.take(taken).cast(pa.string()) for segment in segments]
        if self.job.label_column is not None and corpus.labels is not None:
            assert self.head.labels is not None
            columns.append(corpus.labels.take(taken).cast(self.head.labels.type))
        if self.has_ids:
            ids = pa.nulls(len(corpus), pa.string()) if corpus.ids is None else corpus.ids
            columns.append(ids.take(taken))
        return columns

    def _origins(self, prompts: Prompts, responses: Responses) -> list[str]:
        keys = {each: prompts.keys(each) for each in {g.gives_response for g in self.generators}}
        both = zip(responses.prompts.tolist(), responses.generators.tolist(), strict=True)
        return [bytes(keys[self.generators[who].gives_response][at]).hex() for at, who in both]


def _turns(chat: str) -> list[dict[str, Any]]:
    turns = turns_of(chat)
    assert turns is not None
    for turn in turns:
        if more := sorted(turn.keys() - {"role", "content"}):
            raise CorpusError(
                f"chat {chat[:60]!r}: a turn has {', '.join(more)}, for which there is no column; "
                "only role and content are written"
            )
    return turns
