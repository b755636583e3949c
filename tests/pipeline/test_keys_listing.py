"""`--keys` lists every key of a job, and of the teacher that is named."""

import pytest
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.precompute_job import PrecomputeJob
from armada.stages.precompute.teachers import TEACHERS
from command_line import CommandLine


@pytest.mark.parametrize("kind", sorted(TEACHERS.built_in))
def test_precompute_lists_job_keys_and_those_of_the_teacher(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = CommandLine(capsys).done("precompute", "--keys", "--teacher", kind)
    options = TEACHERS.load(kind).Options
    assert [line.split()[0] for line in printed.splitlines()] == [
        *PrecomputeJob.model_fields,
        *options.model_fields,
    ]


def test_distill_lists_its_keys_with_a_meaning_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = CommandLine(capsys).done("distill", "--keys").splitlines()
    assert [line.split()[0] for line in lines] == [*DistillJob.model_fields]
    assert all(len(line.split(maxsplit=2)) == 3 for line in lines)
