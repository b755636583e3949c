"""Data sets of the `datasets` library: from the hub, `hf-dataset:NAME?split=train`, or in memory.

`&name=` chooses one of several configurations, `&revision=` a branch, tag or commit. No code of a
repository is run. Needs the extra `datasets`.
"""

import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from ...cache_schemas.errors import CorpusError, one_line
from ...cache_schemas.extras import require_extra
from ...cache_schemas.locations import InMemory

HUB_DATASET = "hf-dataset:"
_PARAMETERS = ("split", "name", "revision")


def open_hub_dataset(source: str) -> Any:
    """A split of a data set of the hub, kept on disk by `datasets`. Raises CorpusError."""
    require_extra(f"corpus {source}", "datasets", "datasets")
    import datasets

    name, _, query = source.removeprefix(HUB_DATASET).partition("?")
    request = dict(parse_qsl(query))
    if unknown := [key for key in request if key not in _PARAMETERS]:
        raise CorpusError(
            f"corpus {source}: {unknown[0]!r} is not a parameter; choose from "
            f"{', '.join(_PARAMETERS)}"
        )
    chosen = {"revision": request.get("revision")}
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        config = request.get("name")
        split = request.get("split")
        if split is None:
            split = _only_split(source, datasets.get_dataset_split_names(name, config, **chosen))
        return datasets.load_dataset(name, config, split=split, **chosen)
    except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as cause:
        reason = " ".join(str(cause).split())[:300]
        raise CorpusError(f"corpus {source}: {reason or type(cause).__name__}") from cause


def _only_split(source: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    mark = "&" if "?" in source else "?"
    raise CorpusError(
        f"corpus {source}: has several splits ({', '.join(names)}); name one: "
        f"'{source}{mark}split={names[0]}'"
    )


def is_dataset(table: Any) -> bool:
    """Whether it is a `datasets.Dataset` rather than an Arrow table."""
    return hasattr(table, "with_format")


def dataset_table(dataset: Any, columns: list[str]) -> pa.Table:
    """Some columns of a data set, in the order in which it has its rows."""
    return dataset.select_columns(columns).with_format("arrow")[:]


def in_memory(table: Any) -> InMemory:
    """A table in memory under a name: a `datasets.Dataset`, an Arrow table, what hands one over
    (`__arrow_c_stream__`: data frames of pandas and polars), or a list of dictionaries, one a row.
    Raises CorpusError."""
    if isinstance(table, list | tuple):
        table = _rows_table(table)
    if is_dataset(table):
        if not hasattr(table, "num_rows") or isinstance(table, dict):
            kind = type(table).__name__
            raise CorpusError(
                f"corpus {kind}: is not a single table (several splits, or a stream); pass a "
                "datasets.Dataset, for example data['train']"
            )
    elif not isinstance(table, pa.Table):
        if not hasattr(table, "__arrow_c_stream__"):
            raise CorpusError(
                f"corpus {type(table).__name__}: is not a table; pass files, an Arrow table, a "
                "data frame, or a datasets.Dataset"
            )
        table = _arrow_table(table)
    return InMemory(f"table of {table.num_rows} rows", table)


def _rows_table(rows: Sequence[Any]) -> pa.Table:
    """Rows as dictionaries; a key that some lack is null there."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise CorpusError(
                f"corpus list of rows, row {number}: is not a dictionary, but {type(row).__name__}"
            )
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, TypeError, ValueError) as cause:
        reason = one_line(" ".join(map(str, cause.args)))
        raise CorpusError(
            f"corpus list of {len(rows)} rows: cannot be read as a table: {reason}; give each "
            "column values of one type"
        ) from cause


def _arrow_table(frame: Any) -> pa.Table:
    """A data frame as Arrow has it; refuses one column, columns of mixed types, and names twice."""
    try:
        return pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as cause:
        reason = one_line(" ".join(map(str, cause.args)))
        raise CorpusError(
            f"corpus {type(frame).__name__}: cannot be read as a table: {reason}; pass a data "
            "frame with unique column names and one type per column"
        ) from cause
