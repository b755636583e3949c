"""The versions of other packages: the lowest that pyproject.toml allows are what CI installs, and
constraints.txt names some that are allowed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ALL = ("teachers", "cluster", "report", "lora", "s3", "datasets", "test")
LINES = [*PROJECT["dependencies"], *(line for extra in ALL for line in EXTRAS[extra])]
TESTED = [Requirement(line) for line in dict.fromkeys(LINES) if not line.startswith("armada-kd[")]


def pinned(file: str) -> dict[str, Version]:
    """Versions by the names of packages in a file of pins."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(p.name): Version(str(p.specifier).removeprefix("==")) for p in pins}


@pytest.mark.parametrize("requirement", TESTED, ids=str)
def test_the_lowest_version_is_the_one_that_is_tested(requirement: Requirement) -> None:
    floors = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    assert len(floors) == 1
    lowest = pinned(".ci/lowest.txt")[canonicalize_name(requirement.name)]
    # What is tested may be a later build of that version, which was all there is of it.
    assert lowest.release[: len(floors[0].release)] == floors[0].release


@pytest.mark.parametrize("requirement", TESTED, ids=str)
def test_constraints_are_allowed(requirement: Requirement) -> None:
    assert pinned("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_extras_ask_for_the_versions_that_tests_ask_for() -> None:
    tested = {requirement.name: str(requirement) for requirement in TESTED}
    lines = [line for lines in EXTRAS.values() for line in lines]
    shared = [Requirement(line) for line in lines if Requirement(line).name in tested]
    assert len(shared) > len({requirement.name for requirement in shared}), "pillow, twice"
    assert [str(requirement) for requirement in shared] == [tested[r.name] for r in shared]


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert [line for line in listed[1].splitlines() if " # " not in line] == []
