"""The rows of a source as examples, block by block, each checked once.

A row that is null or blank stops the run and is named, with how many more of its file are so, or is
left out and listed when the job says `skip_bad_rows`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import CorpusError
from .chats import EACH_ANSWER, chat_examples, holds_chats, read_chats
from .files import Wanted, read_blocks
from .text_files import TextFormat
from .values import id_values, plain_labels, text_values

OPTIONAL = "?"
"""Behind the name of a text column that may be blank."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which columns of a corpus to read, at most how many rows of each source, and what to do about
    bad ones."""

    text_columns: tuple[str, ...]
    label_column: str | None
    id_column: str | Literal[False] | None
    skip_bad_rows: bool
    limit: int | None
    asks: bool
    form: TextFormat

    @property
    def wanted(self) -> Wanted:
        """The columns by their names."""
        names = [column_name(each) for each in self.text_columns]
        return Wanted(names, self.label_column, self.id_column or None, optional="id")

    def ids_in(self, table: pa.Table) -> str | None:
        """The column of ids, if there is one."""
        if self.id_column is None:
            return "id" if "id" in table.column_names else None
        return self.id_column or None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one file that were read at once: how many, the examples of the good ones with the
    row of each (from 0, in the file), and what is wrong with the others."""

    file: str
    length: int
    rows: npt.NDArray[np.int64]
    segments: tuple[pa.Array, ...]
    ids: pa.Array | None
    labels: pa.Array | None
    problems: tuple[str, ...]
    chats: bool


def read_source(source: str, asked: Asked) -> Iterator[Block]:
    """The blocks of a source, of each file at least one. Raises CorpusError."""
    left, file, first = asked.limit, "", 0
    faults: list[str] = []
    for name, table in read_blocks(source, asked.wanted, asked.form):
        if name != file:
            _refuse(faults)
            file, first = name, 0
        table = table.slice(0, left)
        block = _checked(name, first, table, asked)
        first += len(table)
        faults += () if asked.skip_bad_rows else block.problems
        yield block
        if left is not None:
            left -= len(table)
            if not left:
                break
    _refuse(faults)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise CorpusError(first_of(faults))


def _checked(source: str, first: int, table: pa.Table, asked: Asked) -> Block:
    """The good rows of a block, whose own first is `first` of its file."""
    text_columns, label_column = asked.text_columns, asked.label_column
    names = asked.wanted.text
    id_column = asked.ids_in(table)
    ids = id_values(source, id_column, table[id_column]) if id_column else None
    labels = (
        plain_labels(source, label_column, table[label_column], first) if label_column else None
    )
    chats = holds_chats(table[names[0]].type) and len(names) == 1
    if chats:
        turns, problems = read_chats(table[names[0]], asked.asks)
        problems = {
            row: f"the chat of column {names[0]!r} {problem}" for row, problem in problems.items()
        }
    else:
        segments = tuple(text_values(source, name, table[name], first) for name in names)
        required = [not column.endswith(OPTIONAL) for column in text_columns]
        problems = _problems(dict(zip(names, segments, strict=True)), required)
    keep = np.setdiff1d(np.arange(len(table)), np.fromiter(problems, dtype=np.int64))
    if chats:
        each_answer = text_columns[0].endswith(EACH_ANSWER)
        chosen, keep = chat_examples(turns, keep, each_answer, asked.asks)
        segments = (chosen,)
    else:
        segments = tuple(column.take(pa.array(keep)).fill_null("") for column in segments)
    return Block(
        file=source,
        length=len(table),
        rows=first + keep,
        segments=segments,
        ids=None if ids is None else ids.take(pa.array(keep)),
        labels=None if labels is None else labels.take(pa.array(keep)),
        problems=tuple(
            f"corpus {source} row {first + row + 1}: {problems[row]}" for row in sorted(problems)
        ),
        chats=chats,
    )


def column_name(text_column: str) -> str:
    """The name of a text column, without the mark of one that may be blank, or of chats of which
    every answer counts."""
    return text_column.removesuffix(OPTIONAL).removesuffix(EACH_ANSWER)


def _problems(texts: dict[str, pa.Array], required: Sequence[bool]) -> dict[int, str]:
    """Row -> what is wrong with it."""
    problems: dict[int, str] = {}
    blanks = {name: _blank(column) for name, column in texts.items()}
    for (name, blank), must in zip(blanks.items(), required, strict=True):
        if must:
            null = texts[name].is_null().to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(blank).tolist():
                what = "null" if null[row] else "empty"
                problems[row] = f"column {name!r} is {what}"
    for row in np.flatnonzero(np.logical_and.reduce(list(blanks.values()))).tolist():
        told = f"all of its columns are empty ({', '.join(texts)})"
        problems.setdefault(row, told)
    return problems


def _blank(column: pa.Array) -> npt.NDArray[np.bool_]:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
    found: npt.NDArray[np.bool_] = blank.to_numpy(zero_copy_only=False)
    return found


def first_of(problems: Sequence[str]) -> str:
    """What is wrong with the first of bad rows, how many there are, and what to do."""
    more = f" ({len(problems)} such rows)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; mend the file, or set skip_bad_rows=true to leave such rows out"
