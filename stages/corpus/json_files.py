"""JSON: one object a line, or one array of objects, become tables.

Dates stay text. A file is read twice, since any row may decide the type of a column. Memory: a
block of lines; of an array, which is rewritten with one object per line, an element.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.json

from ...cache_schemas.errors import CorpusError
from .text_files import (
    BLOCK_BYTES,
    READ_BYTES,
    TextFormat,
    mapped,
    not_utf8,
    refusal,
    without_rows,
)

_TAIL = 16
"""The end of a block may split a word or number of so many characters."""


def read_json(
    source: str, form: TextFormat, texts: Sequence[str], typed: bool
) -> Iterator[pa.Table]:
    """Block by block; the first has no rows."""
    with mapped(source, form.encoding, "JSON", _lines_of_array) as file:
        lines = io.BufferedReader(file)  # which closes the file when it goes
        try:
            schema = pa.schema([])
            for table in _json_blocks(lines, None):
                known = [field.with_type(_without_dates(field.type)) for field in table.schema]
                schema = pa.unify_schemas([schema, pa.schema(known)], promote_options="permissive")
            if not schema.names:
                raise CorpusError(
                    f"corpus {source}: cannot be read: Empty JSON file; name one with one object "
                    "per row"
                )
            yield without_rows(schema)
            yield from _json_blocks(lines, schema)
        except pa.ArrowException as cause:
            raise refusal(source, cause, lambda: _json_fault(lines)) from cause


def _json_blocks(lines: BinaryIO, schema: pa.Schema | None) -> Iterator[pa.Table]:
    """Whole lines of a file, about BLOCK_BYTES at once."""
    parse = pyarrow.json.ParseOptions(explicit_schema=schema)
    lines.seek(0)
    for block in iter(lambda: lines.read(BLOCK_BYTES) + lines.readline(), b""):
        if block.lstrip().startswith(b"null"):  # ends the process (pyarrow 26)
            raise pa.ArrowInvalid("a row is null")
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


_BETWEEN = re.compile(r"[ \t\r\n]*")


def _lines_of_array(source: str, texts: Iterator[str]) -> Iterator[str]:
    return (f"{json.dumps(row)}\n" for row in _elements(source, texts))


def _elements(source: str, texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The elements of an array, which need not fit into memory."""
    decoder = json.JSONDecoder()
    rest, position, number = next(texts).lstrip()[1:], 0, 0
    while True:
        position = _after_blanks(rest, position)
        try:
            if position == len(rest):
                raise json.JSONDecodeError("the array has no end", rest, position)
            if rest[position] == "]":
                _check_end(source, number, chain([rest[position + 1 :]], texts))
                return
            start = position
            if number:
                if rest[position] != ",":
                    raise json.JSONDecodeError("no comma before it", rest, 0)
                start = _after_blanks(rest, position + 1)
            element, end = decoder.raw_decode(rest, start)
        except json.JSONDecodeError as cause:
            cut = cause.pos >= len(rest) - _TAIL or cause.msg.startswith("Unterminated")
            # The more has come of it, the more comes at once: a long one is not begun too often.
            more = "".join(islice(texts, 1 + len(rest) // READ_BYTES))
            if not cut or not more:
                ends = cut and not rest.rstrip().endswith("]")
                remedy = "the file is truncated: write it again" if ends else "fix the file"
                raise CorpusError(
                    f"corpus {source} row {number + 1}: cannot be read: {cause.msg}; {remedy}"
                ) from cause
            rest, position = rest[position:] + more, 0
            continue
        number += 1
        if not isinstance(element, dict):
            raise CorpusError(f"corpus {source} row {number}: {_no_object(element)}")
        yield element
        position = end


def _check_end(source: str, number: int, texts: Iterable[str]) -> None:
    """Check the end of an array: it is complete, and nothing follows."""
    if not number:
        raise CorpusError(f"corpus {source}: its array is empty; name another file")
    if any(text.strip(" \t\r\n") for text in texts):
        raise CorpusError(
            f"corpus {source}: data after the end of its array (row {number}); make it one array "
            "of objects, or one object per line"
        )


def _no_object(row: Any) -> str:
    return (
        f"is not an object of columns, but {json.dumps(row, ensure_ascii=False)[:40]}; "
        'make each row an object, such as {"text": "..."}'
    )


def _after_blanks(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    assert found is not None
    return found.end()


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
            return f"row {number}: {reason}; write one object per line, or one array of objects"
        if not isinstance(row, dict):
            return f"row {number}: {_no_object(row)}"
    return "make each column one type"


def rows_within(schema: pa.Schema, name: str) -> str | None:
    """Remedy for a JSON file whose only object holds all rows, which have the column `name`; None
    for others."""
    if len(schema) > 1 and all(_has_field(field.type, name) for field in schema):
        return f"its rows have names ({schema.names[0]!r}, ...): make them an array of objects"
    for field in schema:
        if pa.types.is_list(field.type) and _has_field(field.type.value_type, name):
            return f"the rows are in its {field.name!r}: make that array the file"
        if pa.types.is_struct(field.type):
            deeper = rows_within(pa.schema(list(field.type)), name)
            if deeper is not None:
                return deeper
    return None


def _has_field(kind: pa.DataType, name: str) -> bool:
    return bool(pa.types.is_struct(kind)) and kind.get_field_index(name.partition(".")[0]) >= 0
