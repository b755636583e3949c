"""CSV, TSV and JSON: texts of any encoding become tables.

Arrow reads them from files of its own, mapped into memory: what is compressed, remote, in another
encoding than UTF-8 or one array of JSON is first written out as a plain file, as large as its
texts, that is removed afterwards. A Python file would not do: Arrow's threads let go of it when
they like, and abort a process that ends meanwhile (pyarrow 26). What Arrow refuses is read again by
Python, to say which row is wrong, and what to do about it.
"""

import codecs
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
from fsspec.core import split_protocol
from fsspec.utils import infer_compression

from ...cache_schemas.errors import CorpusError

BLOCK_BYTES = 16 * 2**20
"""What is parsed at once of a text file; no row of it can be longer."""

_HEAD_BYTES, _READ_BYTES = 2**16, 2**20
_TAIL = 16
"""The end of a block may cut a word or a number of so many characters."""

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = ";\t|"
NAME_ENCODING = (
    "name the encoding in which the file was written, for example encoding=latin-1 or "
    "encoding=cp1252"
)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How the text files of a corpus are written, where their names and first bytes do not say."""

    encoding: str | None = None
    delimiter: str | None = None


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The bytes of a file or URL, without its compression."""
    name = source.partition("?")[0] if "://" in source else source
    with fsspec.open(source, "rb", compression=infer_compression(name)) as file:
        yield file


def read_csv(
    source: str, form: TextFormat, texts: Sequence[str], typed: bool
) -> Iterator[pa.Table]:
    """Fields may be in quotation marks (RFC 4180)."""
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=form.delimiter or ",")
    return _csv(source, form, texts, typed, parse)


def read_tsv(
    source: str, form: TextFormat, texts: Sequence[str], typed: bool
) -> Iterator[pa.Table]:
    """Fields are never quoted: a quotation mark is text."""
    delimiter = form.delimiter or "\t"
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter, quote_char=False)
    return _csv(source, form, texts, typed, parse)


def _csv(
    source: str,
    form: TextFormat,
    texts: Sequence[str],
    typed: bool,
    parse: pyarrow.csv.ParseOptions,
) -> Iterator[pa.Table]:
    """Block by block; if `typed`, all at once, since any row may tell what its column holds."""
    read = pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=typed)
    with _mapped(source, form.encoding, "CSV") as file:
        try:
            names = pyarrow.csv.open_csv(file, read, parse).schema.names
            file.seek(0)
            # Texts stay texts: "12" is no number and "null" no missing value.
            types = {} if typed else dict.fromkeys(names, pa.binary())
            types |= dict.fromkeys(texts, pa.string())
            convert = pyarrow.csv.ConvertOptions(column_types=types)
            if typed:
                yield pyarrow.csv.read_csv(file, read, parse, convert)
                return
            batches = pyarrow.csv.open_csv(file, read, parse, convert)
            yield batches.schema.empty_table()
            yield from map(_as_table, batches)
        except pa.ArrowException as cause:
            raise _refusal(source, cause, lambda: _csv_fault(file, parse)) from cause


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def read_json(
    source: str, form: TextFormat, texts: Sequence[str], typed: bool
) -> Iterator[pa.Table]:
    """One object a line, or an array of objects; what looks like a date is a text. Read twice: any
    row may tell what its column holds."""
    with _mapped(source, form.encoding, "JSON") as file:
        lines = io.BufferedReader(file)  # which closes the file when it goes
        try:
            schema = pa.schema([])
            for table in _json_blocks(lines, None):
                known = [field.with_type(_without_dates(field.type)) for field in table.schema]
                schema = pa.unify_schemas([schema, pa.schema(known)], promote_options="permissive")
            if not schema.names:
                raise CorpusError(f"corpus {source}: cannot be read: Empty JSON file")
            yield schema.empty_table()
            yield from _json_blocks(lines, schema)
        except pa.ArrowException as cause:
            raise _refusal(source, cause, lambda: _json_fault(lines)) from cause


def _json_blocks(lines: BinaryIO, schema: pa.Schema | None) -> Iterator[pa.Table]:
    """Whole lines of a file, about BLOCK_BYTES at once."""
    parse = pyarrow.json.ParseOptions(explicit_schema=schema)
    lines.seek(0)
    for block in iter(lambda: lines.read(BLOCK_BYTES) + lines.readline(), b""):
        read = pyarrow.json.ReadOptions(block_size=len(block))
        yield pyarrow.json.read_json(pa.BufferReader(block), read, parse)


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """A type with texts for what Arrow takes for dates."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return kind


@contextmanager
def _mapped(source: str, encoding: str | None, kind: str) -> Iterator[pa.NativeFile]:
    """The text of a file as UTF-8, rows of JSON on a line each."""
    with opened(source) as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise CorpusError(f"corpus {source}: cannot be read: Empty {kind} file")
        found = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
        encoding = encoding or found or "utf-8"
        is_array = kind == "JSON" and _decoded(head, encoding).lstrip("\ufeff \t\r\n")[:1] == "["
        plain = codecs.lookup(encoding).name == "utf-8" and found is None and not is_array
        local = split_protocol(source)[0] is None and infer_compression(source) is None
        if plain and local:
            with pa.memory_map(source) as mapped:
                yield mapped
            return
        with tempfile.NamedTemporaryFile(prefix="armada-") as copy:
            blocks = chain([head], iter(lambda: file.read(_READ_BYTES), b""))
            for block in blocks if plain else _in_utf8(source, blocks, encoding, is_array):
                copy.write(block)
            copy.flush()
            with pa.memory_map(copy.name) as mapped:
                yield mapped


def _decoded(head: bytes, encoding: str) -> str:
    return codecs.getincrementaldecoder(encoding)("replace").decode(head)


def _in_utf8(
    source: str, blocks: Iterable[bytes], encoding: str, is_array: bool
) -> Iterator[bytes]:
    texts = _texts(source, blocks, encoding)
    lines = (f"{json.dumps(row)}\n" for row in _elements(source, texts)) if is_array else texts
    return (line.encode() for line in lines)


def _texts(source: str, blocks: Iterable[bytes], encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    lines, first = 0, True
    try:
        for block in chain(blocks, [b""]):
            text = decoder.decode(block, final=not block)
            lines += text.count("\n")
            yield text.removeprefix("\ufeff") if first else text
            first = first and not text
    except UnicodeDecodeError as cause:
        lines += cause.object[: cause.start].count(b"\n")
        raise CorpusError(
            f"corpus {source} line {lines + 1}: is not {encoding} ({cause.reason}); name the "
            "encoding in which it was written, for example encoding=latin-1"
        ) from cause


_BETWEEN = re.compile(r"[ \t\r\n]*")


def _elements(source: str, texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The elements of an array, which need not fit into memory."""
    decoder = json.JSONDecoder()
    rest, place, number = next(texts).lstrip()[1:], 0, 0
    while True:
        place = _after_blanks(rest, place)
        try:
            if place == len(rest):
                raise json.JSONDecodeError("the array has no end", rest, place)
            if rest[place] == "]":
                break
            start = place
            if number:
                if rest[place] != ",":
                    raise json.JSONDecodeError("no comma before it", rest, 0)
                start = _after_blanks(rest, place + 1)
            element, end = decoder.raw_decode(rest, start)
        except json.JSONDecodeError as cause:
            cut = cause.pos >= len(rest) - _TAIL or cause.msg.startswith("Unterminated")
            # The more has come of it, the more comes at once: a long one is not begun too often.
            more = "".join(islice(texts, 1 + len(rest) // _READ_BYTES))
            if not cut or not more:
                raise CorpusError(
                    f"corpus {source} row {number + 1}: cannot be read: {cause.msg}; mend the file"
                ) from cause
            rest, place = rest[place:] + more, 0
            continue
        number += 1
        if not isinstance(element, dict):
            raise CorpusError(
                f"corpus {source} row {number}: is no object with the columns of a row, but "
                f"{json.dumps(element)[:40]}"
            )
        yield element
        place = end


def _after_blanks(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    assert found is not None
    return found.end()


def _refusal(source: str, cause: Exception, fault: Callable[[], str | None]) -> CorpusError:
    """What Arrow said, and which row is to blame."""
    said = str(cause).splitlines()[0]
    told = fault()
    return CorpusError(f"corpus {source}: cannot be read: {said}" + (f"; {told}" if told else ""))


def _csv_fault(file: pa.NativeFile, parse: pyarrow.csv.ParseOptions) -> str | None:
    """The first row that is not of the form that the file is read in."""
    file.seek(0)
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(io.BufferedReader(file), "latin-1", newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if parse.quote_char else csv.QUOTE_NONE
    rows = csv.reader(lines, delimiter=parse.delimiter, quoting=quoting)
    header = next(rows, [])
    for number, fields in enumerate(rows, 1):
        for name, field in zip(header, fields, strict=False):
            if (told := not_utf8(field.encode("latin-1"))) is not None:
                return f"row {number}: column {name!r} {told}"
        if fields and len(fields) != len(header):
            remedy = several_in_one(header) or (
                f"quote fields that hold a {parse.delimiter!r}, or name another delimiter, such as "
                "delimiter=';'"
            )
            return f"row {number}: has {len(fields)} fields and the header {len(header)}; {remedy}"
    return None


def _json_fault(lines: BinaryIO) -> str | None:
    lines.seek(0)
    rows = (line for line in lines if line.strip())
    for number, line in enumerate(rows, 1):
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            return f"row {number}: {not_utf8(line)}"
        except ValueError as cause:
            reason = cause.msg if isinstance(cause, json.JSONDecodeError) else cause
            return f"row {number}: {reason}; each line is an object, or the file an array of them"
        if not isinstance(row, dict):
            return f"row {number}: is no object with the columns of a row"
    return "make each column one type"


def not_utf8(value: bytes, remedy: str = NAME_ENCODING) -> str | None:
    """What is wrong with bytes that are not UTF-8, and what to do; None if they are."""
    try:
        value.decode()
    except UnicodeDecodeError as cause:
        shown = value[max(0, cause.start - 10) : cause.start + 6]
        return f"is not UTF-8 ({shown!r}); {remedy}"
    return None


def several_in_one(header: Sequence[str]) -> str | None:
    """What to do about a CSV whose only column looks like several; None if it does not."""
    found = [each for each in _SEPARATORS if len(header) == 1 and each in header[0]]
    return f"its one column looks like several: set delimiter={found[0]!r}" if found else None


def is_plain_file(source: str) -> bool:
    """Whether a file lies on this machine as it is."""
    return split_protocol(source)[0] is None and Path(source).is_file()
