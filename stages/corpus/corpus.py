"""A corpus: rows of one or many files, each an example with text segments, held in Arrow memory.

What comes in: files and column names. What goes out: examples by number, their keys, and words for
where each came from. Every row is checked once, here: a row that is null, blank or repeats an id
stops the run and is named, or is left out and listed when the job says `skip_bad_rows`. A text
column that is named with a question mark behind (`context?`) may be blank in some rows. A column of
chats (`chats.py`) is the one text column of its corpus.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.chats import chat_turns
from ...cache_schemas.errors import CorpusError
from ...cache_schemas.keys import KeyArray, example_key, keys_to_array
from ...cache_schemas.locations import shown_url
from .chats import EACH_ANSWER, chat_examples, holds_chats, read_chats
from .files import Wanted, read_tables
from .text_files import TextFormat
from .values import id_values, plain_labels, text_values

OPTIONAL = "?"
"""Behind the name of a text column that may be blank."""

_BATCH_ROWS = 65_536


PLAIN = TextFormat()


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a source, and the number that the first row of each has in it."""

    names: tuple[str, ...]
    starts: tuple[int, ...]

    def where(self, number: int) -> str:
        """File and row (from 1)."""
        file = bisect.bisect_right(self.starts, number) - 1
        return f"{self.names[file]} row {number - self.starts[file] + 1}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """N examples. `segments` has one string column per text column; rows are numbered through the
    `files` of each source."""

    sources: tuple[str, ...]
    files: tuple[Files, ...]
    segments: tuple[pa.Array, ...]
    ids: pa.Array | None
    labels: pa.Array | None
    source_of_row: npt.NDArray[np.int32]
    number_of_row: npt.NDArray[np.int64]
    skipped: tuple[str, ...]
    chats: bool = False
    """Whether the one segment of an example is a chat (`cache_schemas/chats.py`)."""

    def __len__(self) -> int:
        return len(self.number_of_row)

    def examples(self, rows: npt.NDArray[np.int64]) -> list[tuple[str, ...]]:
        """The text segments of the given rows."""
        columns = [column.take(pa.array(rows)).to_pylist() for column in self.segments]
        return list(zip(*columns, strict=True))

    def batches(self) -> Iterator[list[tuple[str, ...]]]:
        """All examples in order, in lists of at most 65,536."""
        for start in range(0, len(self), _BATCH_ROWS):
            yield self.examples(np.arange(start, min(start + _BATCH_ROWS, len(self))))

    def keys(self) -> KeyArray:
        """The key of every row, [N, 16]."""
        return keys_to_array(example_key(example) for batch in self.batches() for example in batch)

    def texts(self) -> Iterator[str]:
        """All that the examples say, text by text."""
        for batch in self.batches():
            for segments in batch:
                if self.chats:
                    yield from (turn["content"] for turn in chat_turns(segments[0]))
                else:
                    yield from segments

    def require_format(self, text_format: object, who: str) -> None:
        """Raises CorpusError for chats that would be read as texts."""
        if self.chats and text_format != "chat":
            raise CorpusError(
                f"corpus {self.sources[0]}: its text column holds chats, and {who} reads texts; "
                "language models read chats, with text_format=chat"
            )

    def where(self, row: int) -> str:
        """File, row (from 1) and id of a row, for messages."""
        place = self.files[self.source_of_row[row]].where(int(self.number_of_row[row]))
        return place if self.ids is None else f"{place} (id {self.ids[row].as_py()!r})"

    def take(self, rows: npt.NDArray[np.int64]) -> "Corpus":
        """Only the given rows, in the order given; messages still name their files and rows."""
        taken = pa.array(rows)
        return Corpus(
            sources=self.sources,
            files=self.files,
            segments=tuple(column.take(taken) for column in self.segments),
            ids=None if self.ids is None else self.ids.take(taken),
            labels=None if self.labels is None else self.labels.take(taken),
            source_of_row=self.source_of_row[rows],
            number_of_row=self.number_of_row[rows],
            skipped=self.skipped,
            chats=self.chats,
        )

    def without(self, rows: npt.NDArray[np.int64], problem: str) -> "Corpus":
        """The same without some rows, each listed with what is wrong with it."""
        listed = tuple(f"{self.where(row)}: {problem}" for row in rows.tolist())
        rest = self.take(np.setdiff1d(np.arange(len(self)), rows))
        return replace(rest, skipped=(*self.skipped, *listed))


def corpus_name(source: str) -> str:
    """Name of a file or folder, without its path: that is nobody else's business."""
    return PurePosixPath(shown_url(source).rstrip("/")).name.partition("?")[0]


def read_corpus(
    sources: Sequence[str],
    text_columns: Sequence[str],
    *,
    label_column: str | None = None,
    id_column: str | Literal[False] | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    asks: bool = False,
    form: TextFormat = PLAIN,
) -> Corpus:
    """Read and check the examples of `sources`; at most `limit` rows of each. `asks`: of chats,
    what asks for the last answer.

    A source is a file, a folder, a glob, a URL, a data set of the hub, or a table `in_memory`;
    `form` says what the names of text files do not. Columns may be fields of nested ones.
    Of text columns, one that ends in a question mark may be blank, if not all of a row are; one of
    chats that ends in a star makes an example of every answer.
    Ids are checked for repetition: those of `id_column`, which every source must have; of a column
    `id` where there is one, if `id_column` is None; none if it is False.
    Raises CorpusError naming file, row and column."""
    names = {column_name(column) for column in text_columns}
    if not sources or not text_columns or len(names) < len(text_columns):
        raise CorpusError(
            f"corpus {list(sources)}, text_column {list(text_columns)}: "
            "name at least one of each, no column twice"
        )
    asked = _Asked(tuple(text_columns), label_column, id_column, skip_bad_rows, asks)
    parts = [_read_source(source, asked, limit, form) for source in sources]
    corpus = _join([shown_url(source) for source in sources], parts)
    if len(corpus) == 0:
        raise CorpusError(f"corpus {', '.join(corpus.sources)}: holds no rows to use")
    return corpus


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which columns of a corpus to read, and what to do about bad rows."""

    text_columns: tuple[str, ...]
    label_column: str | None
    id_column: str | Literal[False] | None
    skip_bad_rows: bool
    asks: bool

    @property
    def wanted(self) -> Wanted:
        others = [name for name in (self.label_column, self.id_column) if name]
        return Wanted([column_name(each) for each in self.text_columns], others, optional="id")

    def ids_in(self, table: pa.Table) -> str | None:
        """The column of ids, if there is one."""
        if self.id_column is None:
            return "id" if "id" in table.column_names else None
        return self.id_column or None


def _read_source(source: str, asked: _Asked, limit: int | None, form: TextFormat) -> Corpus:
    """The good rows of the files of a source, numbered through."""
    parts: list[Corpus] = []
    starts, ids = [0], list[pa.Array]()
    for name, table in read_tables(source, asked.wanted, form):
        table = table.slice(0, None if limit is None else limit - starts[-1])
        id_column = asked.ids_in(table)
        known = id_values(name, id_column, table[id_column]) if id_column else None
        ids += [] if known is None else [known]
        parts.append(_read_part(name, table, asked, known))
        starts.append(starts[-1] + len(table))
        if starts[-1] == limit:
            break
    joined = _join([part.sources[0] for part in parts], parts)
    files = Files(joined.sources, tuple(starts[:-1]))
    numbers = joined.number_of_row + np.array(starts)[joined.source_of_row]
    repeated = _repeated_ids(files, pa.concat_arrays(ids)) if len(ids) == len(parts) else {}
    if repeated and not asked.skip_bad_rows:
        raise CorpusError(_first_of(list(repeated.values())))
    whole = replace(
        joined,
        sources=(shown_url(source),),
        files=(files,),
        source_of_row=np.zeros(len(joined), dtype=np.int32),
        number_of_row=numbers,
    )
    if not repeated:
        return whole
    good = whole.take(np.flatnonzero(~np.isin(numbers, list(repeated))))
    told = (repeated[number] for number in sorted(repeated.keys() & set(numbers.tolist())))
    return replace(good, skipped=(*whole.skipped, *told))


def _read_part(source: str, table: pa.Table, asked: _Asked, ids: pa.Array | None) -> Corpus:
    """The good rows of one file."""
    text_columns, label_column = asked.text_columns, asked.label_column
    names = asked.wanted.text
    labels = plain_labels(source, label_column, table[label_column]) if label_column else None
    chats = holds_chats(table[names[0]].type) and len(names) == 1
    if chats:
        turns, problems = read_chats(table[names[0]], asked.asks)
        problems = {
            row: f"corpus {source} row {row + 1}: the chat of column {names[0]!r} {problem}"
            for row, problem in problems.items()
        }
    else:
        segments = tuple(text_values(source, name, table[name]) for name in names)
        required = [not column.endswith(OPTIONAL) for column in text_columns]
        problems = _problems(source, dict(zip(names, segments, strict=True)), required)
    if problems and not asked.skip_bad_rows:
        raise CorpusError(_first_of(list(problems.values())))
    keep = np.setdiff1d(np.arange(len(table)), np.fromiter(problems, dtype=np.int64))
    if chats:
        each_answer = text_columns[0].endswith(EACH_ANSWER)
        chosen, keep = chat_examples(turns, keep, each_answer, asked.asks)
        segments = (chosen,)
    else:
        segments = tuple(column.take(pa.array(keep)).fill_null("") for column in segments)
    return Corpus(
        sources=(source,),
        files=(Files((source,), (0,)),),
        segments=segments,
        ids=None if ids is None else ids.take(pa.array(keep)),
        labels=None if labels is None else labels.take(pa.array(keep)),
        source_of_row=np.zeros(len(keep), dtype=np.int32),
        number_of_row=keep,
        skipped=tuple(problems[row] for row in sorted(problems)),
        chats=chats,
    )


def column_name(text_column: str) -> str:
    """The name of a text column, without the mark of one that may be blank, or of chats of which
    every answer counts."""
    return text_column.removesuffix(OPTIONAL).removesuffix(EACH_ANSWER)


def _problems(source: str, texts: dict[str, pa.Array], required: Sequence[bool]) -> dict[int, str]:
    """Row -> what is wrong with it."""
    problems: dict[int, str] = {}
    blanks = {name: _blank(column) for name, column in texts.items()}
    for (name, blank), must in zip(blanks.items(), required, strict=True):
        if must:
            null = texts[name].is_null().to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(blank).tolist():
                what = "null" if null[row] else "empty"
                problems[row] = f"corpus {source} row {row + 1}: column {name!r} is {what}"
    for row in np.flatnonzero(np.logical_and.reduce(list(blanks.values()))).tolist():
        told = f"corpus {source} row {row + 1}: all of its columns are empty ({', '.join(texts)})"
        problems.setdefault(row, told)
    return problems


def _blank(column: pa.Array) -> npt.NDArray[np.bool_]:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
    found: npt.NDArray[np.bool_] = blank.to_numpy(zero_copy_only=False)
    return found


def _repeated_ids(files: Files, ids: pa.Array) -> dict[int, str]:
    """Number of a row of a source -> which row has its id too."""
    if pc.count_distinct(ids, mode="all").as_py() == len(ids):
        return {}
    first: dict[str, int] = {}
    problems = {}
    for row, value in enumerate(ids.to_pylist()):
        if first.setdefault(value, row) != row:
            here, there = files.where(row), files.where(first[value])
            # Of the same file, the row is enough.
            there = there.removeprefix(here.rpartition("row")[0])
            problems[row] = f"corpus {here}: id {value!r} is that of {there} too"
    return problems


def _first_of(problems: list[str]) -> str:
    more = f" ({len(problems)} such rows)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; mend the file, or set skip_bad_rows=true to leave such rows out"


def _join(sources: Sequence[str], parts: list[Corpus]) -> Corpus:
    if len({part.chats for part in parts}) > 1:
        kinds = ", ".join(f"{p.sources[0]} {'chats' if p.chats else 'texts'}" for p in parts)
        raise CorpusError(f"corpus: chats and texts are mixed ({kinds}); make them one kind")
    return Corpus(
        sources=tuple(sources),
        files=tuple(part.files[0] for part in parts),
        segments=tuple(
            pa.concat_arrays(columns) for columns in zip(*(p.segments for p in parts), strict=True)
        ),
        ids=_join_ids(parts),
        labels=_join_labels(sources, parts),
        source_of_row=np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts]),
        number_of_row=np.concatenate([part.number_of_row for part in parts]),
        skipped=tuple(problem for part in parts for problem in part.skipped),
        chats=parts[0].chats,
    )


def _join_ids(parts: list[Corpus]) -> pa.Array | None:
    if all(part.ids is None for part in parts):
        return None
    missing = [pa.nulls(len(part), pa.string()) if part.ids is None else part.ids for part in parts]
    return pa.concat_arrays(missing)


def _join_labels(sources: Sequence[str], parts: list[Corpus]) -> pa.Array | None:
    columns = [part.labels for part in parts if part.labels is not None]
    if not columns:
        return None
    kinds = {column.type for column in columns if not pa.types.is_null(column.type)}
    if len(kinds) > 1:
        described = ", ".join(sorted(str(kind) for kind in kinds))
        raise CorpusError(
            f"corpus {', '.join(sources)}: labels are of mixed types ({described}); make them one"
        )
    return pa.concat_arrays([column.cast(*kinds) if kinds else column for column in columns])
