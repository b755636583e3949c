"""What the README points to and names exists; docs/test_readme_commands.py runs its commands."""

import re
from pathlib import Path

import pytest
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.precompute_job import PrecomputeJob
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.precompute.teachers import TEACHERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def teacher_rows() -> list[tuple[str, str]]:
    """Kind and options of each row of the table of teachers."""
    table = re.search(r"\| kind \| source .*?\n\n", README, re.DOTALL)
    assert table is not None
    rows = [line.split(" | ") for line in table[0].strip().split("\n")[2:]]
    return [(row[0].strip("| `"), row[-1].replace(r"\|", "")) for row in rows]


def test_six_files_to_read_first_exist() -> None:
    listed = re.findall(r"^\d\. \[(\S+)\]\((\S+)\)", README, re.MULTILINE)
    assert len(listed) == 6
    assert all(name == target and (ROOT / target).is_file() for name, target in listed)


def test_links_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\((\S+?)\)", README) if not t.startswith("http")]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_all_teachers_are_listed() -> None:
    assert sorted(kind for kind, _ in teacher_rows()) == sorted(TEACHERS.built_in)


@pytest.mark.parametrize(("kind", "options"), teacher_rows(), ids=lambda value: value[:10])
def test_options_of_teachers_exist(kind: str, options: str) -> None:
    named = re.findall(r"`(\w+)[`=]", options)
    assert named
    assert set(named) <= TEACHERS.load(kind).Options.model_fields.keys()


def test_set_keys_and_yaml_keys_exist() -> None:
    known = {*DistillJob.model_fields, *PrecomputeJob.model_fields}
    for kind in TEACHERS.built_in:
        known |= TEACHERS.load(kind).Options.model_fields.keys()
    for name in OBJECTIVES.built_in:
        known |= OBJECTIVES.load(name).Options.model_fields.keys()
    yaml = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert yaml is not None
    named = {*re.findall(r"--set '?(\w+)=", README), *re.findall(r"^(\w+):", yaml[1], re.MULTILINE)}
    assert len(named) > 10
    assert named <= known
