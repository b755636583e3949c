"""From a grid of job keys to its cells: what each one is called, and which keys it sets.

    grid: {alpha: [0, 0.5, 1], beta: [0, 1]}          six cells

    grid:                                             the cells of three grids
      - {control: [undistilled, none, shuffled]}
      - {name: BERT-6L, student: google-bert/bert-base-uncased, student_layers: 6}
      - {alpha: [0, 1]}

A list holds the values of one key; anything else is the only one. `name` is what a grid's cells are
called, followed by the keys that have several values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import Any

from ...cache_schemas.errors import JobError

NAME = "name"
_NOT_SWEPT = {
    "output": "every run has a folder of its own below it",
    "resume": "it is a key of the whole",
    "seed": "a list of seeds beside the grid is run for every cell",
}

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid: its name and the keys that it sets."""

    name: str
    values: Values


def cells(grid: Any, beside: Values) -> list[Cell]:
    """All cells of a grid, or of a list of grids, that stands beside other keys of a job.

    Raises JobError for what is no grid and for contradictions."""
    grids = grid if isinstance(grid, list | tuple) else [grid]
    if not grids:
        raise JobError("job key 'grid': is empty; give keys with lists of values")
    for one in grids:
        _check(one)
    _check_beside(grids, beside)
    found = [cell for one in grids for cell in _cells(one)]
    _check_names(found)
    return found


def _check(grid: Any) -> None:
    if not isinstance(grid, Mapping):
        raise JobError(f"job key 'grid': {grid!r}: is not a mapping of keys to lists of values")
    if not grid:
        raise JobError("job key 'grid': is empty; give keys with lists of values")
    for key, values in grid.items():
        if key in _NOT_SWEPT:
            raise JobError(f"grid key {key!r}: cannot be swept; {_NOT_SWEPT[key]}")
        if values == []:
            raise JobError(f"grid key {key!r}: has no values; name some, or leave it out")
        twice = [value for i, value in enumerate(_axis(values)) if value in _axis(values)[:i]]
        if twice:
            raise JobError(f"grid key {key!r}: {twice[0]!r} comes twice; name it once")
    if isinstance(grid.get(NAME), list):
        raise JobError("grid key 'name': a grid has one name; make several grids")


def _check_beside(grids: Sequence[Values], beside: Values) -> None:
    """A value that every grid replaces was meant for something."""
    for key, value in beside.items():
        if all(key in grid for grid in grids):
            raise JobError(
                f"job key {key!r}: {value!r} stands beside the grid, and the grid sets "
                f"{grids[0][key]!r}; leave one of them out"
            )


def _cells(grid: Values) -> Iterator[Cell]:
    axes = {str(key): _axis(values) for key, values in grid.items() if key != NAME}
    title = grid.get(NAME)
    told = [key for key, values in axes.items() if title is None or len(values) > 1]
    for point in product(*axes.values()):
        values = dict(zip(axes, point, strict=True))
        parts = [str(title)] if title is not None else []
        yield Cell(", ".join([*parts, *(shown(key, values[key]) for key in told)]), values)


def _axis(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def shown(key: str, value: Any) -> str:
    """A key with its value in few words: 'alpha=0.5'; controls and students speak for themselves,
    and the control `none` is distillation."""
    if key == "control":
        return "distilled" if value == "none" else str(value)
    if key == "student":
        return PurePath(str(value)).name
    if key == "objectives" and isinstance(value, list | tuple):
        return "+".join(str(each.get("name")) for each in value if isinstance(each, Mapping))
    return f"{key}={value}"


def _check_names(found: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in found:
        other = seen.setdefault(cell.name, cell)
        if other is not cell and other.values != cell.values:
            raise JobError(
                f"grid: two cells are called {cell.name!r}; give their grids a 'name' each"
            )
