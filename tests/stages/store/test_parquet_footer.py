"""What is read of a footer is what a Parquet library reads of it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.stages.store.format.tables import MAX_FOOTER_BYTES, Footer, read_footer

TABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as we write it": ({"a": range(100)}, {"use_dictionary": False, "store_schema": False}),
    "no rows": ({"a": pa.array([], pa.int8())}, {}),
    "many row groups": ({"a": range(1000), "b": ["text"] * 1000}, {"row_group_size": 7}),
    "many columns": ({f"column {n}": [n] for n in range(300)}, {}),
    "compressed": ({"a": range(100)}, {"compression": "zstd"}),
    "one column compressed": (
        {"a": range(100), "b": range(100)},
        {"compression": {"a": "none", "b": "snappy"}},
    ),
    "nested": ({"a": [{"b": [1, 2], "c": {"d": True}}, None]}, {}),
    "sorted, with checksums and statistics": (
        {"a": range(100)},
        {
            "sorting_columns": [pq.SortingColumn(0)],
            "write_page_checksum": True,
            "write_page_index": True,
        },
    ),
    "dates and decimals": (
        {
            "a": pa.array([1, 2], pa.timestamp("us", "UTC")),
            "b": pa.array([1, 2], pa.decimal128(9, 2)),
        },
        {"version": "1.0"},
    ),
}


@pytest.mark.parametrize(("columns", "how"), TABLES.values(), ids=TABLES)
def test_claims_are_those_of_the_file(
    tmp_path: Path, columns: dict[str, Any], how: dict[str, Any]
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path, **({"compression": "none"} | how))
    footer = pq.read_metadata(path)
    groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
    codecs = {g.column(n).compression for g in groups for n in range(g.num_columns)}
    assert read_footer(path) == Footer(
        rows=footer.num_rows,
        group_rows=sum(group.num_rows for group in groups),
        compressed=bool(codecs - {"UNCOMPRESSED"}),
    )


def with_footer(footer: bytes) -> bytes:
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


BAD: dict[str, bytes] = {
    "nothing": b"",
    "too short": b"PAR1",
    "another end": with_footer(b"\x00")[:-1] + b"E",
    "a length beyond the file": b"PAR1\x00" + (10**9).to_bytes(4, "little") + b"PAR1",
    "a long footer": with_footer(bytes(MAX_FOOTER_BYTES + 1)),
    "an empty struct": with_footer(b"\x00"),
    "a struct that is cut": with_footer(b"\x36"),
    "a field twice": with_footer(b"\x36\x02\x06\x06\x02\x00"),
    "a number without end": with_footer(b"\x36" + b"\xff" * 50),
    "a list of billions": with_footer(b"\x36\x02\x19\xfc\xff\xff\xff\xff\x0f\x00"),
    "a text of billions": with_footer(b"\x68\xff\xff\xff\xff\x0f\x00"),
    "lists in lists": with_footer(b"\x49" + b"\x19" * 5000),
    "structs in structs": with_footer(b"\x1c" * 5000),
    "an unknown kind": with_footer(b"\x3e\x00"),
    "row groups that are numbers": with_footer(b"\x36\x02\x19\x16\x02\x00"),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_footer_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "table.parquet").write_bytes(data)
    with pytest.raises(DamagedCacheError, match=r"table\.parquet: its footer is not Parquet's"):
        read_footer(tmp_path / "table.parquet")


def test_a_claim_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """One reader would take the first, another the second."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": range(100)}), path, compression="none")
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    again = b"\x06\x06\x0a"  # field 3 (rows): 5
    path.write_bytes(with_footer(data[start:-9] + again + data[-9:-8]))
    with pytest.raises(DamagedCacheError, match="field 3 is repeated"):
        read_footer(path)
