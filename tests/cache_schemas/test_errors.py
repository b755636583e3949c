"""The tree of errors is the one drawn in its module's docstring."""

import re

import pytest
from armada.cache_schemas import errors

LINE = re.compile(r"^ {4}([│ ]*)(?:[├└]── )?(\w+Error)\b(?:.*exit code (\d))?")


def drawn() -> dict[str, tuple[str | None, int]]:
    """Class -> (parent, exit code), as the drawing has it."""
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[tuple[str, int]] = []
    for line in errors.__doc__.splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        indent, name, code = found.groups()
        depth = len(indent) // 4 + ("── " in line)
        del path[depth:]
        inherited = path[-1][1] if path else errors.ArmadaError.exit_code
        path.append((name, int(code) if code else inherited))
        tree[name] = (path[-2][0] if depth else None, path[-1][1])
    return tree


def defined() -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ArmadaError)
    }


def test_every_error_is_drawn() -> None:
    assert set(drawn()) == defined()
    assert len(drawn()) == 22


@pytest.mark.parametrize("name", sorted(drawn()))
def test_error_is_where_it_is_drawn(name: str) -> None:
    parent, exit_code = drawn()[name]
    error = getattr(errors, name)
    assert error.__base__.__name__ == (parent or "Exception")
    assert error.exit_code == exit_code
    assert exit_code == (2 if issubclass(error, errors.InputError) else 1)


def test_missing_keys_know_their_positions() -> None:
    error = errors.MissingKeysError("2 of 5 are missing", [1, 4])
    assert str(error) == "2 of 5 are missing"
    assert error.positions == [1, 4]
