"""The floors of the package: imports only go down, and nothing heavy is imported on the way in."""

import ast
import re
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("cache_schemas", "stages", "pipeline")
FILES = sorted(
    [*ROOT.glob("*.py"), *(file for part in PRODUCT for file in (ROOT / part).rglob("*.py"))]
)

FLOORS = (
    ("cache_schemas",),
    (
        "stages.choosing",
        "stages.memory",
        "stages.known_digests",
        "stages.matrix_products",
        "stages.pictures",
        "stages.pooling",
        "stages.ragged",
        "stages.tokenizing",
    ),
    (
        "stages.plugins",
        "stages.sources",
        "stages.pretrained",
        "stages.corpus",
        "stages.language",
        "stages.store",
    ),
    ("stages.deriving", "stages.embeddings", "stages.cache_dataset", "stages.retrieval"),
    ("stages.adapters",),
    ("stages.precompute", "stages.distill"),
    ("stages.testing",),
    ("pipeline", "testing"),
    ("",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; units of one floor do not know each other."""

STORE_FLOORS = (("files",), ("format", "codec"), ("reading", "writing"), ("upkeep", "transfer"))
"""The floors inside of the store."""

CHANGES_FILES = {
    *("chmod", "copyfile", "copytree", "hardlink_to", "makedirs", "mkdir", "rename", "rmdir"),
    *("rmtree", "symlink_to", "touch", "truncate", "unlink", "utime", "write_atomic"),
    *("write_bytes", "write_table", "write_text"),
    *("os.link", "os.remove", "os.symlink", "shutil.copy", "shutil.copy2", "shutil.move"),
}

CHANGES_ITS_OWN = {
    "reservations": {"rename", "rmtree"},  # of folders that have one owner
    "staged_shard": {"unlink"},
    "remote": {"copyfile", "write_bytes"},  # to where its caller works, or to a temporary folder
    "arrivals": {"copyfile"},
    "pull": {"mkdir"},  # below its caller's temporary folder
    "local_part": {"rmdir"},  # of empty folders that it has made itself
    "mirrored_teacher": {"utime"},
    "tables": {"write_table"},  # to memory
}
"""Modules of the store that change files, or what looks like it, without `files/own_files.py`."""

WITHOUT_TORCH = ("cache_schemas", "stages.corpus", "stages.store", "stages.plugins")
LIGHT = {
    *("typer", "json", "logging", "os", "sys", "time", "pathlib", "typing", "__future__"),
    *("atexit", "gc", "collections", "contextlib", "enum", "threading", "traceback", "types"),
}


def module_of(file: Path) -> str:
    """Dotted name below `armada`; empty for the package itself."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of all that is imported anywhere in `tree`."""
    package = ["armada", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # A name may be a module of the package or something inside of it.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def unit_of(module: str) -> tuple[int, str]:
    """Floor and unit of a module of armada."""
    for floor, units in enumerate(FLOORS):
        for unit in units:
            if module == unit or (unit and module.startswith(f"{unit}.")):
                return floor, unit
    if module == "__version__":  # of the package itself
        return unit_of("")
    raise AssertionError(f"{module}: on no floor; give it one in FLOORS")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_only_go_down(file: Path) -> None:
    if module_of(file) == "stages":  # holds units of two floors
        assert not list(imported(file, parsed(file)))
        return
    floor, unit = unit_of(module_of(file))
    for name in imported(file, parsed(file)):
        if name.startswith("armada."):
            below, other = unit_of(name.removeprefix("armada."))
            assert other == unit or below < floor, f"{unit or 'armada'} imports {name}"


def test_no_imports_go_in_a_circle() -> None:
    """Those within functions count, too; those for types alone do not."""
    modules = {module_of(file): file for file in FILES}
    importing = {
        module: {
            owner
            for name in imported(file, at_run_time(parsed(file)))
            if (owner := owner_of(name, modules)) and owner != module
        }
        for module, file in modules.items()
    }
    reach = {module: reached(module, importing) for module in modules}
    found = []
    for module, others in reach.items():
        circle = {other for other in others if module in reach[other]}
        if circle and circle not in found:
            found.append(circle)
    assert found == []


def at_run_time(tree: ast.Module) -> ast.Module:
    """`tree` without what is imported for types alone."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


def owner_of(name: str, modules: Collection[str]) -> str | None:
    """The module of armada that an imported name is, or lies in; the package itself has none."""
    inside = name.removeprefix("armada.")
    if inside == name:
        return None
    return inside if inside in modules else inside.rpartition(".")[0] or None


def reached(start: str, importing: dict[str, set[str]]) -> set[str]:
    """The modules that `start` imports, and those that they import, and so on."""
    found: set[str] = set()
    left = [start]
    while left:
        new = importing.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent.parent.name == "store"], ids=lambda f: f.stem
)
def test_imports_in_the_store_only_go_down(file: Path) -> None:
    floor_of = {unit: floor for floor, units in enumerate(STORE_FLOORS) for unit in units}
    for name in imported(file, parsed(file)):
        other = name.removeprefix("armada.stages.store.").partition(".")[0]
        if name.startswith("armada.stages.store.") and other != file.parent.name:
            assert floor_of[other] < floor_of[file.parent.name], name


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.parent.parent.name == "store" and f.parent.name != "files"],
    ids=lambda f: f.stem,
)
def test_the_store_changes_files_in_one_place(file: Path) -> None:
    assert set(changes(parsed(file))) <= CHANGES_ITS_OWN.get(file.stem, set())


def changes(tree: ast.AST) -> Iterator[str]:
    """Names of the calls in `tree` that change files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            dotted = ast.unparse(node.func)
            name = dotted.rpartition(".")[2]
            words = [part.value for part in node.args if isinstance(part, ast.Constant)]
            writes = name == "open" and re.search("[wax+]", " ".join(map(str, words)))
            # That of a text has two arguments.
            if (
                {name, dotted} & CHANGES_FILES
                or writes
                or (name == "replace" and len(node.args) == 1)
            ):
                yield name


@pytest.mark.parametrize("unit", WITHOUT_TORCH)
def test_these_never_import_torch(unit: str) -> None:
    files = [file for file in FILES if f"{module_of(file)}.".startswith(f"{unit}.")]
    assert files
    for file in files:
        roots = {name.partition(".")[0] for name in imported(file, parsed(file))}
        assert not roots & {"torch", "transformers"}, file


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "cli.py",
            {
                "cache_schemas.errors",
                "pipeline.caches.commands",
                "pipeline.imports",
                "pipeline.messages",
            },
        ),
        ("pipeline/caches/commands.py", set()),
        ("pipeline/imports.py", set()),
        ("pipeline/messages.py", {"cache_schemas.errors"}),
    ],
)
def test_the_command_line_imports_little_before_a_command_runs(
    file: str, expected: set[str]
) -> None:
    tree = parsed(ROOT / file)
    top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    names = set(imported(ROOT / file, top))
    ours = {name for name in names if name.startswith("armada.")}
    assert {name.removeprefix("armada.").rpartition(".")[0] for name in ours} == expected
    assert {name.partition(".")[0] for name in names - ours} <= LIGHT


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    folders = {file.parent for file in FILES if file.name == "__init__.py"}
    found = {".".join(["armada", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert set(listed) == found
    assert listed == sorted(listed)
    # A module in a folder that is no package would not be installed either.
    assert {file.parent for file in FILES} == folders
