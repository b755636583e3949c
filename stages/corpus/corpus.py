"""A corpus: rows of one or many files, each an example with text segments, held in Arrow memory.

In: files and column names. Out: examples by number, their keys, and descriptions of their origin.
Every row is checked once, here: a row that is null, blank or repeats an id stops the run and is
named, or is skipped and listed with `skip_bad_rows`. A text column that is named with a question
mark behind (`context?`) may be blank in some rows. A column of chats (`reading.py`) is the one text
column of its corpus.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.chats import chat_turns
from ...cache_schemas.errors import CorpusError
from ...cache_schemas.keys import IntArray, KeyArray, example_key, keys_to_array
from ...cache_schemas.locations import shown_url
from .files import is_at_hand
from .reading import CorpusRequest, column_name, first_of, read_source
from .text_files import TextFormat

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
    number_of_row: IntArray
    skipped: tuple[str, ...]
    chats: bool = False
    """Whether the one segment of an example is a chat (`cache_schemas/chats.py`)."""
    weights: pa.Array | None = None
    """A number of 0 or more for each row, if they were requested."""

    def __len__(self) -> int:
        return len(self.number_of_row)

    def examples(self, rows: IntArray) -> list[tuple[str, ...]]:
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
        """All texts of the examples."""
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
                f"corpus {self.sources[0]}: its text column holds chats, but {who} reads texts; "
                "use a language model with text_format=chat"
            )

    def where(self, row: int) -> str:
        """File, row (from 1) and id of a row, for messages."""
        where = self.files[self.source_of_row[row]].where(int(self.number_of_row[row]))
        return where if self.ids is None else f"{where} (id {self.ids[row].as_py()!r})"

    def take(self, rows: IntArray) -> "Corpus":
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
            weights=None if self.weights is None else self.weights.take(taken),
        )

    def of_columns(self, columns: Sequence[int]) -> "Corpus":
        """The same rows with some of the text columns, by index."""
        return replace(self, segments=tuple(self.segments[column] for column in columns))

    def without(self, rows: IntArray, problem: str) -> "Corpus":
        """The same without some rows, each listed with its problem."""
        listed = tuple(f"{self.where(row)}: {problem}" for row in rows.tolist())
        rest = self.take(np.setdiff1d(np.arange(len(self)), rows))
        return replace(rest, skipped=(*self.skipped, *listed))


def corpus_name(source: str) -> str:
    """Name of a file or folder without its path, which is private."""
    return PurePosixPath(shown_url(source).rstrip("/")).name.partition("?")[0]


def read_corpus(
    sources: Sequence[str],
    text_columns: Sequence[str],
    *,
    label_column: str | tuple[str, ...] | None = None,
    label_separator: str | None = None,
    id_column: str | Literal[False] | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    prompts_only: bool = False,
    form: TextFormat = PLAIN,
    several_chats: bool = False,
    weight_column: str | None = None,
) -> Corpus:
    """Read and check the examples of `sources`; at most `limit` rows of each. `prompts_only`: for
    chats, the prompt of the last answer only; `several_chats`: whether each of several text columns
    may be one of chats, to be parted by `of_columns`; `weight_column`: of numbers of 0 or more.

    A source is a file, a folder, a glob, a URL, a data set of the hub, or a table `in_memory`;
    `form` has the format options of text files. Columns may be fields of nested ones. Several
    columns of labels are one for each class or output; `label_separator` parts a text into labels.
    A column named `picture:NAME` holds pictures, whose bytes are the segments. A text column whose
    name ends in a question mark may be blank, if not all of a row are; a column of chats
    whose name ends in a star makes an example of every answer. Ids are checked for repetition:
    those of `id_column`, which every source must have; of a column `id` where there is one, if
    `id_column` is None; none if it is False. Raises CorpusError naming file, row and column."""
    request = CorpusRequest(
        tuple(text_columns),
        label_column,
        id_column,
        skip_bad_rows,
        limit,
        prompts_only,
        form,
        label_separator,
        several_chats,
        weight_column,
    )
    _require_names(sources, text_columns)
    parts = []
    for source in sources:
        blocks = list(_blocks(source, request))
        blocks = list(_without_repeated(blocks, _repeated_ids(partial(iter, blocks), request)))
        parts.append(_join_blocks(source, blocks))
    corpus = _join([shown_url(source) for source in sources], parts)
    _require_rows(len(corpus), sources)
    return corpus


def refuse_unreadable(
    sources: Sequence[str],
    text_columns: Sequence[str],
    *,
    id_column: str | Literal[False] | None = None,
    form: TextFormat = PLAIN,
) -> None:
    """Refuse, before anything else is made ready, what the first rows of each source show: files
    that are not there or cannot be read, columns that they lack. What would be fetched, or can be
    read only once, is left to `read_corpus`. Raises CorpusError."""
    request = CorpusRequest(
        tuple(text_columns), None, id_column, True, limit=None, prompts_only=False, form=form
    )
    _require_names(sources, text_columns)
    for source in sources:
        if is_at_hand(source):
            next(read_source(source, request))


@dataclass(frozen=True, slots=True)
class CorpusStream:
    """A corpus of any length: it has been read and checked once, and is read again for each
    iteration. Memory: a block, and 8 bytes for each id while they are compared.

    `head` has no rows, only the kind of corpus."""

    head: Corpus
    rows: int
    has_ids: bool
    skipped: tuple[str, ...]
    request: CorpusRequest
    repeated: tuple[tuple[str, Mapping[int, str]], ...]
    """The sources, and of each: row -> which other one has its id."""

    def blocks(self) -> Iterator[Corpus]:
        """The good rows, in order."""
        for source, repeated in self.repeated:
            for block in _without_repeated(_blocks(source, self.request), repeated):
                if self.has_ids and block.ids is None:
                    yield replace(block, ids=pa.nulls(len(block), pa.string()))
                else:
                    yield block


def stream_corpus(sources: Sequence[str], request: CorpusRequest) -> CorpusStream:
    """Check the examples of `sources` as `read_corpus` does, but keep none of them."""
    _require_names(sources, request.text_columns)
    rows, has_ids, skipped, heads = 0, False, list[str](), list[Corpus]()
    repeated = list[tuple[str, dict[int, str]]]()
    for source in sources:
        blocks = partial(_blocks, source, request)
        repeated.append((source, _repeated_ids(blocks, request)))
        for block in _without_repeated(blocks(), repeated[-1][1]):
            if block.chats not in {head.chats for head in heads} or not heads:
                heads.append(block.take(np.empty(0, dtype=np.int64)))
            rows += len(block)
            has_ids = has_ids or block.ids is not None
            skipped += block.skipped
    head = _join([each.sources[0] for each in heads], heads)
    _require_rows(rows, sources)
    return CorpusStream(head, rows, has_ids, tuple(skipped), request, tuple(repeated))


def _require_names(sources: Sequence[str], text_columns: Sequence[str]) -> None:
    names = {column_name(column) for column in text_columns}
    if not sources or not text_columns or len(names) < len(text_columns):
        raise CorpusError(
            f"corpus {list(sources)}, text_column {list(text_columns)}: give at least one of each, "
            "no column twice"
        )


def _require_rows(rows: int, sources: Sequence[str]) -> None:
    if not rows:
        raise CorpusError(f"corpus {', '.join(map(shown_url, sources))}: holds no rows to use")


def _blocks(source: str, request: CorpusRequest) -> Iterator[Corpus]:
    """The good rows of a source, numbered through its files, block by block."""
    names, starts, count = list[str](), list[int](), 0
    for block in read_source(source, request):
        if names[-1:] != [block.file]:
            names.append(block.file)
            starts.append(count)
        count += block.length
        yield Corpus(
            sources=(shown_url(source),),
            files=(Files(tuple(names), tuple(starts)),),
            segments=block.segments,
            ids=block.ids,
            labels=block.labels,
            source_of_row=np.zeros(len(block.rows), dtype=np.int32),
            number_of_row=starts[-1] + block.rows,
            skipped=block.problems,
            chats=block.chats,
            weights=block.weights,
        )


def _join_blocks(source: str, blocks: list[Corpus]) -> Corpus:
    """All rows of one source."""
    joined = _join([block.files[0].names[-1] for block in blocks], blocks)
    return replace(
        joined,
        sources=(shown_url(source),),
        files=blocks[-1].files,
        source_of_row=np.zeros(len(joined), dtype=np.int32),
    )


def _repeated_ids(blocks: Callable[[], Iterable[Corpus]], request: CorpusRequest) -> dict[int, str]:
    """Number of a row of a source -> which row has its id too; none where a file has no ids.

    Raises CorpusError if there are any that are not to be skipped."""
    hashes = [np.empty(0, dtype=np.int64)]
    for block in blocks():
        if block.ids is None:
            return {}
        # Several examples of one row are next to each other, and have one id.
        one_a_row = np.flatnonzero(np.diff(block.number_of_row, prepend=-1))
        values = block.ids.take(pa.array(one_a_row)).to_pylist()
        hashes.append(np.fromiter(map(hash, values), dtype=np.int64, count=len(values)))
    every = np.sort(np.concatenate(hashes))
    alike = set(every[1:][every[1:] == every[:-1]].tolist())
    problems = _same_ids(blocks(), alike) if alike else {}
    if problems and not request.skip_bad_rows:
        raise CorpusError(first_of(list(problems.values())))
    return problems


def _same_ids(blocks: Iterable[Corpus], alike: Set[int]) -> dict[int, str]:
    """Repeated ids among those with equal hashes."""
    first: dict[str, int] = {}
    problems = {}
    for block in blocks:
        assert block.ids is not None
        for number, value in zip(block.number_of_row.tolist(), block.ids.to_pylist(), strict=True):
            if hash(value) in alike and first.setdefault(value, number) != number:
                here, there = (block.files[0].where(row) for row in (number, first[value]))
                # Of the same file, the row is enough.
                there = there.removeprefix(here.rpartition("row")[0])
                problems[number] = f"corpus {here}: id {value!r} is also that of {there}"
    return problems


def _without_repeated(blocks: Iterable[Corpus], repeated: Mapping[int, str]) -> Iterator[Corpus]:
    """The blocks without rows whose id another row has; these are listed."""
    bad = list(repeated)
    for block in blocks:
        here = np.isin(block.number_of_row, bad)
        messages = [repeated[number] for number in np.unique(block.number_of_row[here]).tolist()]
        good = block.take(np.flatnonzero(~here)) if messages else block
        yield replace(good, skipped=(*block.skipped, *messages))


def _join(sources: Sequence[str], parts: list[Corpus]) -> Corpus:
    if len({part.chats for part in parts}) > 1:
        named = [
            f"{source} {'chats' if part.chats else 'texts'}"
            for source, part in zip(sources, parts, strict=True)
        ]
        kinds = ", ".join(dict.fromkeys(named))
        raise CorpusError(f"corpus: mixes chats and texts ({kinds}); use one kind")
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
        weights=None if parts[0].weights is None else pa.concat_arrays([p.weights for p in parts]),
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
    kinds = list(dict.fromkeys(column.type for column in columns))
    kind = kinds[0]
    for other in kinds[1:]:
        joint = _joint_type(kind, other)
        if joint is None:
            described = ", ".join(sorted(str(each) for each in kinds if not pa.types.is_null(each)))
            raise CorpusError(
                f"corpus {', '.join(dict.fromkeys(sources))}: labels have mixed types "
                f"({described}); make them one type"
            )
        kind = joint
    return pa.concat_arrays([column.cast(kind) for column in columns])


def _joint_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type of labels of two files, where one may lack all values or elements; None if they
    differ."""
    if pa.types.is_null(one) or one == other:
        return other
    if pa.types.is_null(other):
        return one
    if pa.types.is_large_list(one) and pa.types.is_large_list(other):
        inner = _joint_type(one.value_type, other.value_type)
        return None if inner is None else pa.large_list(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = [(a.name, _joint_type(a.type, b.type)) for a, b in zip(one, other, strict=True)]
        known = [(name, kind) for name, kind in fields if kind is not None]
        return pa.struct(known) if len(known) == len(fields) else None
    return None
