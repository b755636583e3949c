"""Options that objectives have gained: in jobs, and in those of runs that began without them."""

from typing import Any

import pytest
from armada.cache_schemas.errors import JobError
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.objective_keys import with_new_options

JOB: dict[str, Any] = {
    **{"train": "train.csv", "text_column": ["text"], "label_column": "label"},
    **{"student": "scratch:bert", "cache": "cache", "output": "run"},
}


def test_an_unfinished_run_has_defaults_of_options_that_are_new() -> None:
    before = with_new_options({"objective": "tokens", "alpha": 0.3, "seed": [0]})
    assert before["token_weights"] == "uniform"
    assert (before["alpha"], before["seed"]) == (0.3, [0])
    several = {"objectives": [{"name": "kd", "alpha": 0.9}, {"name": "not_installed", "mine": 1}]}
    first, other = with_new_options(several)["objectives"]
    assert first == {"name": "kd", "alpha": 0.9, "temperature": 5.0}
    assert other == {"name": "not_installed", "mine": 1}


@pytest.mark.parametrize(
    ("objective", "options"),
    [("jsd", {"jsd_beta": 0.3}), ("skew_kl", {"skew": 0.3}), ("taid", {"taid_start": 0.1})],
)
def test_options_that_tokens_have_too(objective: str, options: dict[str, Any]) -> None:
    job = make(DistillJob, {**JOB, "objective": objective, **options})
    assert job.options.items() >= options.items()
    with pytest.raises(JobError, match="language"):
        make(DistillJob, {**JOB, "objective": "kd", **options})
