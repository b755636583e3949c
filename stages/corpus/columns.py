"""Columns by name, also fields of nested ones: `translation.en` is the field `en` of a struct
`translation`, unless there is a column of just that name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Column:
    """The way to a column from the top, and its type."""

    path: tuple[str, ...]
    type: pa.DataType

    @property
    def root(self) -> str:
        """The column of the table in which it lies."""
        return self.path[0]

    def of(self, table: pa.Table) -> pa.ChunkedArray:
        """Its values; null where a struct on the way is."""
        whole = table[self.root]
        return pc.struct_field(whole, list(self.path[1:])) if self.path[1:] else whole


def find(schema: pa.Schema, name: str) -> Column | None:
    """The column or nested field of that name; None if there is none."""
    if name in schema.names:
        kinds = [field.type for field in schema if field.name == name]
        return Column((name,), kinds[0])
    for root in sorted(schema.names, key=len, reverse=True):
        if name.startswith(f"{root}.") and schema.names.count(root) == 1:
            found = _field(schema.field(root).type, name[len(root) + 1 :])
            if found is not None:
                return Column((root, *found.path), found.type)
    return None


def _field(kind: pa.DataType, name: str) -> Column | None:
    if not pa.types.is_struct(kind):
        return None
    return find(pa.schema(list(kind)), name)


def require(source: str, schema: pa.Schema, names: Sequence[str]) -> dict[str, Column]:
    """The columns of those names; raises CorpusError for one that is not there, or there twice."""
    found: dict[str, Column] = {}
    for name in names:
        column = find(schema, name)
        if column is None:
            raise CorpusError(f"corpus {source}: no column {name!r}{_hint(schema, name)}")
        if schema.names.count(column.root) > 1:
            raise CorpusError(f"corpus {source}: has several columns {name!r}; rename all but one")
        found[name] = column
    return found


def _hint(schema: pa.Schema, name: str) -> str:
    known = schema.names
    root = name.partition(".")[0]
    if root != name and known.count(root) == 1:
        kind = schema.field(root).type
        fields = fields_of(root, kind)
        return f"; column {root!r} holds {f'the fields {fields}' if fields else f'{kind}'}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'; did you mean {near[0]!r}? It has' if near else '; it has'} {', '.join(known)}"


def fields_of(name: str, kind: pa.DataType) -> str:
    """The fields of a struct as a text column would name them; empty for any other type."""
    if not pa.types.is_struct(kind):
        return ""
    return ", ".join(f"{name}.{field.name}" for field in kind)
