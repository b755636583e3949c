"""What the footer of a Parquet file claims, read before a Parquet library acts on it.

A library allocates what a footer claims, and pyarrow ends the whole process at some damaged footers
once Python asks for the metadata of a column (it does not when it reads columns). So the few fields
that matter are read here: rows, row groups, and whether columns are compressed. The footer is one
struct in Thrift's compact protocol, followed by its length and `PAR1`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import DamagedCacheError
from ..files.plain_files import read_error

MAX_FOOTER_BYTES = 2**20
"""That of a table of a cache has some hundreds."""

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_MAX_DEPTH = 20
_VARINT_BITS = 70

# Field numbers of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_COLUMN, _CODEC = 3, 4
_UNCOMPRESSED = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """Rows of the file and of its row groups, and whether any column is compressed."""

    rows: int
    group_rows: int
    compressed: bool


def read_footer(path: Path) -> Footer:
    """The claims of a Parquet file; raises DamagedCacheError if they cannot be read."""
    try:
        return _claims(_Compact(_footer_bytes(path)).struct(0))
    except OSError as cause:
        raise read_error(path, cause) from cause
    except (LookupError, TypeError, ValueError) as cause:
        raise DamagedCacheError(f"{path}: its footer is not Parquet's: {cause!s:.100}") from cause


def _footer_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read(_TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > min(size - _TAIL_BYTES, MAX_FOOTER_BYTES):
            raise ValueError("it ends with no length of a footer and PAR1")
        file.seek(size - _TAIL_BYTES - length)
        return file.read(length)


def _claims(footer: dict[int, Any]) -> Footer:
    groups = footer[_ROW_GROUPS]
    codecs = [column[_COLUMN][_CODEC] for group in groups for column in group[_COLUMNS]]
    return Footer(
        rows=footer[_ROWS],
        group_rows=sum(group[_GROUP_ROWS] for group in groups),
        compressed=any(codec != _UNCOMPRESSED for codec in codecs),
    )


class _Compact:
    """Reads values of Thrift's compact protocol; ValueError or IndexError for what is none."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Field number -> value. No number may come twice: who reads may take either."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._zigzag()
            if number in fields:
                raise ValueError(f"field {number} comes twice")
            # In a struct, the kind of a boolean is its value.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            return list(self._items(depth + 1))
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"values of kind {kind}")

    def _items(self, depth: int) -> Iterator[Any]:
        header = self._byte()
        count, kind = header >> 4, header & 15
        count = self._varint() if count == 15 else count
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        for _ in range(count):  # each of them takes a byte or more, so this ends with the data
            yield self._value(kind, depth)

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("cut")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, _VARINT_BITS, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number without end")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
