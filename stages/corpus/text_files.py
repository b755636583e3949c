"""CSV and TSV, and what JSON (`json_files.py`) shares with them: texts of any encoding become
tables. Arrow reads them from memory-mapped files: a file that is compressed, remote, not UTF-8 or
one JSON array is first rewritten as a plain temporary file, as large as its texts. Python file
objects are not used: Arrow's threads release them at any time, and abort a process that ends
meanwhile (pyarrow 26). Files that Arrow refuses are read again by Python, to find the bad row and a
remedy.
"""

import codecs
import csv
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import fsspec
import pyarrow as pa
import pyarrow.csv
from fsspec.core import split_protocol
from fsspec.utils import infer_compression

from ...cache_schemas.errors import CorpusError

BLOCK_BYTES = 16 * 2**20
"""Block size of parsing; no row can be longer."""

READ_BYTES = 2**20
"""Block size of rewriting."""

_HEAD_BYTES = 2**16

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNMARKED = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_SEPARATORS = ";\t|"
NAME_ENCODING = (
    "name the encoding in which the file was written, for example encoding=latin-1 or "
    "encoding=cp1252"
)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """Format of text files, where their names and first bytes do not decide it."""

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
    """Block by block; if `typed`, all at once, since any row may decide the type of a column."""
    read = pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=typed)
    with mapped(source, form.encoding, "CSV") as file:
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
            yield without_rows(batches.schema)
            yield from map(_as_table, batches)
        except pa.ArrowException as cause:
            raise refusal(source, cause, lambda: _csv_fault(file, parse)) from cause


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


@contextmanager
def mapped(
    source: str,
    encoding: str | None,
    kind: str,
    lines_of_array: Callable[[str, Iterator[str]], Iterator[str]] | None = None,
) -> Iterator[pa.NativeFile]:
    """The text of a file as UTF-8; that of an array by `lines_of_array`, if it is given."""
    with opened(source) as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise CorpusError(
                f"corpus {source}: cannot be read: Empty {kind} file; name one with rows"
            )
        found = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
        if found is None:
            _require_mark(source, head, encoding)
        encoding = encoding or found or "utf-8"
        begins = (_decoded(head, encoding) or "").lstrip("\ufeff \t\r\n")[:1]
        rewrite = lines_of_array if begins == "[" else None
        plain = codecs.lookup(encoding).name == "utf-8" and found is None and rewrite is None
        local = split_protocol(source)[0] is None and infer_compression(source) is None
        if plain and local:
            with pa.memory_map(source) as plain_file:
                yield plain_file
            return
        with tempfile.NamedTemporaryFile(prefix="armada-") as copy:
            blocks = chain([head], iter(lambda: file.read(READ_BYTES), b""))
            for block in blocks if plain else _in_utf8(source, blocks, encoding, rewrite):
                copy.write(block)
            copy.flush()
            with pa.memory_map(copy.name) as utf8:
                yield utf8


def _decoded(head: bytes, encoding: str) -> str | None:
    """The text with which a file begins; None if it is in another encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return None


def _require_mark(source: str, head: bytes, encoding: str | None) -> None:
    """Raises CorpusError for UTF-16 and UTF-32 without a byte order mark or `encoding`."""
    line, _, rest = head.partition(b"\n")
    if b"\0" not in line + rest[:1]:
        return
    # Of the four, that in which most is ASCII: names of columns, what parts fields, ends of lines.
    texts = {name: _decoded(head, name) for name in _UNMARKED}
    ascii_in = {
        name: sum(map(str.isascii, text))
        for name, text in texts.items()
        if text and "\0" not in text
    }
    likely = max(ascii_in, key=ascii_in.__getitem__, default=None)
    if likely and likely != codecs.lookup(encoding or "utf-8").name:
        raise CorpusError(
            f"corpus {source}: looks like {likely.upper()} without a byte order mark (zero bytes "
            f"in its first line); set encoding={likely}"
        )


def _in_utf8(
    source: str,
    blocks: Iterable[bytes],
    encoding: str,
    rewrite: Callable[[str, Iterator[str]], Iterator[str]] | None,
) -> Iterator[bytes]:
    texts = _texts(source, blocks, encoding)
    return (text.encode() for text in (rewrite(source, texts) if rewrite else texts))


def _texts(source: str, blocks: Iterable[bytes], encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    lines, first, remedy = 0, True, NAME_ENCODING
    try:
        for block in chain(blocks, [b""]):
            if first and _decoded(block, "utf-8"):
                remedy = "it looks like utf-8: leave encoding out"
            text = decoder.decode(block, final=not block)
            lines += text.count("\n")
            yield text.removeprefix("\ufeff") if first else text
            first = first and not text
    except UnicodeError as cause:  # some codecs give no position
        reason = str(cause)
        if isinstance(cause, UnicodeDecodeError):
            lines += cause.object[: cause.start].count(b"\n")
            reason = cause.reason
        raise CorpusError(
            f"corpus {source} line {lines + 1}: is not {encoding} ({reason}); {remedy}"
        ) from cause


def refusal(source: str, cause: Exception, fault: Callable[[], str | None]) -> CorpusError:
    """Arrow's message, and the row that caused it."""
    message = str(cause).splitlines()[0]
    detail = fault()
    return CorpusError(
        f"corpus {source}: cannot be read: {message}" + (f"; {detail}" if detail else "")
    )


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
            if (detail := not_utf8(field.encode("latin-1"))) is not None:
                return f"row {number}: column {name!r} {detail}"
        if fields and len(fields) != len(header):
            remedy = several_in_one(header) or (
                f"quote fields that hold a {parse.delimiter!r}, or name another delimiter, such as "
                "delimiter=';'"
            )
            return f"row {number}: has {len(fields)} fields and the header {len(header)}; {remedy}"
    return None


def not_utf8(value: bytes, remedy: str = NAME_ENCODING) -> str | None:
    """Problem and remedy of bytes that are not UTF-8; None if they are."""
    try:
        value.decode()
    except UnicodeDecodeError as cause:
        shown = value[max(0, cause.start - 10) : cause.start + 6]
        return f"is not UTF-8 ({shown!r}); {remedy}"
    return None


def several_in_one(header: Sequence[str]) -> str | None:
    """Remedy for a CSV whose only column looks like several; None if it does not."""
    found = [each for each in _SEPARATORS if len(header) == 1 and each in header[0]]
    return f"its only column looks like several: set delimiter={found[0]!r}" if found else None


def without_rows(schema: pa.Schema) -> pa.Table:
    """A table of no rows; `schema.empty_table` imports pandas for it."""
    return pa.Table.from_batches([], schema)


def is_plain_file(source: str) -> bool:
    """Whether a file is local and uncompressed."""
    return split_protocol(source)[0] is None and Path(source).is_file()
