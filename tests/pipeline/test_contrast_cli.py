"""Contrast with negatives from a cache, class means of a derived teacher, prototypes: as jobs."""

import json
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pytest
import yaml
from armada.cache_schemas.errors import JobError
from command_line import CommandLine


@pytest.fixture
def job(distill_bench: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "label",
        "student": str(distill_bench.student),
        "output": str(tmp_path / "run"),
        "epochs": 1,
        "batch_size": 16,
        "logging_steps": 1,
        "device": "cpu",
    }


def test_negatives_beyond_the_texts_are_refused(distill_bench: Any, job: dict[str, Any]) -> None:
    own = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up[:8]}
    more = {"feature": "embedding", "objective": "infonce", "negatives": 38}
    with pytest.raises(JobError) as caught:
        library.distill(**job, **own, **more)
    assert str(caught.value) == (
        "objective infonce: negatives 38: teacher teacher has features of 53 different training "
        "texts, 16 of them in a batch; choose at most 37"
    )
    assert not Path(job["output"]).exists()


def test_class_means_prototypes_and_negatives_in_one_run(
    armada: CommandLine, distill_bench: Any, job: dict[str, Any], tmp_path: Path
) -> None:
    """Features of a derived teacher beside those of its parent."""
    derived = tmp_path / "derived"
    parent = (distill_bench.cache, "--teacher", distill_bench.made_up[:8], "--feature", "embedding")
    said: dict[str, str] = {}
    for rule, more in (
        (
            "class-means",
            ("--corpus", distill_bench.train, "--text-column", "text", "--label-column", "label"),
        ),
        ("clusters", ("--clusters", "4")),
    ):
        command = ("cache", "derive", *parent, "--rule", rule, "--output", derived, *more)
        said[rule] = json.loads(armada.done(*command, "--json"))["fingerprint"]
    objectives = [
        {"name": "infonce", "teacher": "made", "feature": "embedding", "negatives": 20}
        | {"mask_same_label": True},
        {
            "name": "norm_direction",
            "teacher": "made",
            "features": ["embedding", "means.class_mean"],
        },
        {"name": "prototypes", "teacher": "centres"},
    ]
    teachers = {
        "made": {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up[:8]},
        "means": {"cache": str(derived), "teacher": said["class-means"]},
        "centres": {"cache": str(derived), "teacher": said["clusters"]},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job | {"teachers": teachers, "objectives": objectives}))
    armada.done("distill", file, "--quiet")
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (first, *_) = (row for row in rows if "loss" in row)
    terms = {"task", "infonce.infonce", "norm_direction.norm_direction", "prototypes.prototypes"}
    assert terms <= first.keys()
    assert np.isfinite([first[name] for name in terms]).all()
    assert set(json.loads((run / "run.json").read_text())["teachers"]) == set(teachers)
    assert (run / "student" / "modules.json").exists()
    lacking = [{"name": "norm_direction", "teacher": "made", "feature": "embedding"}]
    again = {"output": str(tmp_path / "again"), "teachers": {"made": teachers["made"]}}
    with pytest.raises(JobError, match="reads 2 features of a teacher, but 1 are named"):
        library.distill(**job | again | {"objectives": lacking})
