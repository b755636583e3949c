"""`--keys` lists every key of a job, and of the teacher that is named, the required ones first."""

import pytest
from armada.pipeline.ablation.job import AblateJob
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import Job
from armada.pipeline.precompute_job import PrecomputeJob
from armada.pipeline.student_jobs import EvaluateJob, PredictJob
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.precompute.teachers import TEACHERS
from command_line import CommandLine


@pytest.mark.parametrize("kind", sorted(TEACHERS.built_in))
def test_precompute_lists_job_keys_and_those_of_the_teacher(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = groups(CommandLine(capsys).done("precompute", "--keys", "--teacher", kind))
    options = TEACHERS.load(kind).Options
    own, texts = "Options of this kind of teacher", "Format of text files"
    budget = "How many texts to compute, and which"
    assert [*printed] == ["Required", "Computation", budget, texts, own]
    assert [*printed[own]] == [*options.model_fields]
    job = [key for heading in printed if heading != own for key in printed[heading]]
    assert sorted(job) == sorted(PrecomputeJob.model_fields)


@pytest.mark.parametrize(
    ("command", "jobs"),
    [
        ("precompute", [PrecomputeJob]),
        ("distill", [DistillJob]),
        ("ablate", [AblateJob, DistillJob]),
        ("evaluate", [EvaluateJob]),
        ("predict", [PredictJob]),
    ],
)
def test_keys_come_once_in_groups_with_a_meaning_each(
    command: str, jobs: list[type[Job]], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = groups(CommandLine(capsys).done(command, "--keys"))
    fields = {name: field for job in jobs[::-1] for name, field in job.model_fields.items()}
    if DistillJob in jobs:
        fields |= OBJECTIVES.load("armada").Options.model_fields
    keys = [name for group in printed.values() for name in group]
    assert sorted(keys) == sorted(fields)
    assert next(iter(printed)) == "Required"
    assert set(printed["Required"]) == {name for name in fields if fields[name].is_required()}
    for group in printed.values():
        for name, told in group.items():
            assert fields[name].description in told


def test_groups_of_distill_follow_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    printed = groups(CommandLine(capsys).done("distill", "--keys"))
    headings = [*printed]
    assert [*printed["Required"]] == ["output", "train", "text_column", "student"]
    assert "label_column" in printed["Training data"]
    assert headings.index("Teacher and cache") < headings.index("Training")


def groups(printed: str) -> dict[str, dict[str, str]]:
    """Heading -> key -> what is said of it."""
    found: dict[str, dict[str, str]] = {}
    for line in printed.splitlines():
        if not line.startswith("  "):
            found[line.removesuffix(":")] = {}
        else:
            name, told = line.split(maxsplit=1)
            found[[*found][-1]][name] = told
    return found
