"""The fixed parts of all messages that the product raises, as its source says them.

A message is what an exception is made of: in a `raise`, or where an error is made to be raised
elsewhere. Words that a function puts together for it count too (functions that return `str` and are
called there), and texts that were given a name in the same function. Neighbouring literals are one,
as Python joins them; what is filled in ends a part.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("cache_schemas", "stages", "pipeline")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def messages() -> frozenset[str]:
    """All fixed parts."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in _files()]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    writers = {f.name: f for f in functions if f.returns and ast.unparse(f.returns) == "str"}
    found: list[ast.AST] = [node for function in functions for node in _made_in(function)]
    seen: set[str] = set()
    for node in found:  # grows while it is looked through
        for name in _called(node) & writers.keys() - seen:
            seen.add(name)
            found.append(writers[name])
    return frozenset(part for node in found for part in _parts(node))


def _files() -> list[Path]:
    return sorted(
        [*ROOT.glob("*.py"), *(f for part in PRODUCT for f in (ROOT / part).rglob("*.py"))]
    )


def _made_in(function: Function) -> Iterator[ast.AST]:
    """What a function raises or makes to be raised, and what it named for that."""
    made = [node for node in ast.walk(function) if _is_error(node)]
    yield from made
    names = {name.id for node in made for name in ast.walk(node) if isinstance(name, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and names & set(map(ast.unparse, node.targets)):
            yield node.value


def _is_error(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).endswith("Error")
    return isinstance(node, ast.Raise)


def _called(node: ast.AST) -> set[str]:
    calls = (each.func for each in ast.walk(node) if isinstance(each, ast.Call))
    return {func.attr if isinstance(func, ast.Attribute) else ast.unparse(func) for func in calls}


def _parts(node: ast.AST) -> Iterable[str]:
    documentation = ast.get_docstring(node, clean=False) if isinstance(node, Function) else None
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return [text for text in constants if isinstance(text, str) and text != documentation]
