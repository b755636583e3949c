"""Runs become conditions, conditions are compared; figures worked out by hand."""

import dataclasses
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.findings.conditions import baseline, conditions, improvements
from armada.pipeline.findings.documents import Metrics, Provenance
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import FinishedRun
from armada.pipeline.findings.table import show_findings
from rich.console import Console


def run(
    seed: int, value: float, metric: str = "accuracy", data: str = "d", **keys: Any
) -> FinishedRun:
    """A finished run as `read_run` would give it."""
    base = {"train": "t.parquet", "validation": "v.parquet", "text_column": "text"}
    base |= {"label_column": "label", "cache": "c", "student": "org/bert", "output": "out"}
    job = DistillJob(**base | keys)
    metrics = Metrics(
        seed=seed,
        metric=metric,
        validation={metric: value},
        train_examples=10,
        steps=1,
        train_seconds=1.0,
    )
    provenance = Provenance(
        train_digest=data,
        validation_digest="v",
        teacher_fingerprint=keys.get("teacher", "f" * 32) if job.distilled else None,
        feature="embedding" if job.distilled else None,
    )
    return FinishedRun(Path("runs", str(seed)), job, metrics, provenance)


def with_seeds(values: list[float], **keys: Any) -> list[FinishedRun]:
    return [run(seed, value, **keys) for seed, value in enumerate(values)]


PLAIN = with_seeds([0.5, 0.6, 0.7], control="undistilled")
TAUGHT = with_seeds([0.8, 0.85, 0.9])
SHUFFLED = with_seeds([0.5, 0.55, 0.75], control="shuffled")


def test_runs_that_differ_in_their_seed_are_one_condition():
    found = conditions([*SHUFFLED, *TAUGHT, *PLAIN])
    assert [(each.name, each.values) for each in found] == [
        ("undistilled", [0.5, 0.6, 0.7]),
        ("distilled", [0.8, 0.85, 0.9]),
        ("shuffled", [0.5, 0.55, 0.75]),
    ]


def test_the_most_usual_distilled_condition_comes_first():
    sweep = [
        run(0, 0.1, alpha=0.0),
        run(0, 0.2),
        run(0, 0.3, beta=0.0),
        run(0, 0.4, teacher="b" * 32),
    ]
    first = conditions(sweep)[0]
    assert first.values == [0.2]
    assert first.name == "distilled, alpha=0.5, beta=1.0, teacher ffffffff"


@pytest.mark.parametrize(
    "keys",
    [
        {"cache": "elsewhere", "verify_cache": True, "device": "cpu"},
        {"placement": "mapped", "logging_steps": 3, "save_steps": 5},
        {"task": "classification", "num_labels": 2, "metric": "accuracy", "limit": 10**6},
        {"skip_bad_rows": True, "compile_student": True, "distance": "cosine"},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_what_a_student_does_not_depend_on_does_not_set_it_apart(keys: dict[str, Any]):
    found = conditions([*PLAIN, *TAUGHT, run(3, 0.8, **keys)])
    assert [len(each.runs) for each in found] == [3, 4]
    assert baseline(found[1], found) is found[0]


def test_an_undistilled_student_reads_no_weights():
    runs = [run(3, 0.8, control="undistilled", alpha=0.1), run(4, 0.8, objective="undistilled")]
    (one,) = conditions([*PLAIN, *runs])
    assert len(one.runs) == 5


def test_an_undistilled_student_has_no_stages():
    """It is the baseline of one that learns from a teacher in stages."""
    keys = {"objectives": [{"name": "kd"}, {"name": "feature"}]}
    stages = [{"until": 0.5, "objectives": ["feature"]}, {"objectives": ["kd", "feature"]}]
    staged = with_seeds([0.8, 0.9], **keys, stages=stages)
    found = conditions([*PLAIN, run(3, 0.5, control="undistilled", **keys, stages=stages), *staged])
    assert [len(each.runs) for each in found] == [4, 2]
    assert baseline(found[1], found) is found[0]


def test_names_come_from_the_job_or_from_what_differs():
    runs = [run(0, 0.1, alpha=0.0), run(0, 0.2, name="ours"), run(0, 0.3, control="noise=2")]
    assert {each.name for each in conditions(runs)} == {
        "distilled, alpha=0.0",
        "ours",
        "noise=2, alpha=0.5",
    }


def test_no_name_stands_for_two():
    runs = [run(0, 0.1, name="ours"), run(0, 0.2, name="ours", beta=0.0)]
    assert sorted(each.name for each in conditions(runs)) == ["ours", "ours (2)"]
    runs.append(run(0, 0.3, name="ours (2)", gamma=0.0))
    assert len({each.name for each in conditions(runs)}) == 3


def test_the_baseline_is_the_same_student_trained_alike():
    other = with_seeds([0.1], control="undistilled", epochs=3)
    found = conditions([*other, *PLAIN, *TAUGHT, *SHUFFLED])
    plain = next(each for each in found if each.values == [0.5, 0.6, 0.7])
    for condition in found:
        expected = plain if condition.first.distilled else None
        assert baseline(condition, found) is expected
    assert baseline(conditions(with_seeds([0.1], epochs=4))[0], found) is None


def test_improvements_are_seed_by_seed():
    plain, taught = conditions([*PLAIN, *TAUGHT, run(7, 0.9)])
    # Seed 7 has no undistilled student: it says nothing about an improvement.
    assert improvements(taught, plain) == pytest.approx({0: 0.3, 1: 0.25, 2: 0.2})
    assert improvements(taught, conditions([run(9, 0.1, control="undistilled")])[0]) == {}


def test_of_an_error_less_is_better():
    runs = [run(0, 3.0, "mse", control="undistilled"), run(0, 1.0, "mse")]
    plain, taught = conditions(runs)
    assert improvements(taught, plain) == {0: 2.0}


def test_other_data_and_other_metrics_are_studies_of_their_own():
    runs = [*PLAIN, *TAUGHT, run(0, 0.1, data="other"), run(0, 0.1, metric="matthews")]
    studies = find(runs).studies
    assert [(study.metric, len(study.rows)) for study in studies] == [
        ("accuracy", 2),
        ("accuracy", 1),
        ("matthews", 1),
    ]
    assert studies[0].title == "t.parquet, validated on v.parquet"


def test_a_run_that_repeats_another_counts_once():
    again = dataclasses.replace(TAUGHT[1], folder=Path("elsewhere"))
    found = find([*PLAIN, *TAUGHT, again])
    assert found.studies == find([*PLAIN, *TAUGHT]).studies
    assert found.document()["repeats"] == ["elsewhere"]


def test_a_study_as_a_document():
    (study,) = find([*PLAIN, *TAUGHT, *SHUFFLED]).document()["studies"]
    plain, taught, shuffled = study["conditions"]
    assert (plain["improvement"], plain["p"], plain["undistilled"]) == (None, None, None)
    assert taught["undistilled"] == "undistilled"
    assert taught["value"]["mean"] == pytest.approx(0.85)
    assert taught["improvement"]["mean"] == pytest.approx(0.25)
    assert 0 < taught["p"] < shuffled["p"] <= 1
    assert study["anova"] == "fewer than two of alpha, beta and gamma have several values"


def test_effects_are_those_of_distilled_runs_that_differ_in_weights_only():
    sweep = [
        run(seed, 0.5 + 0.3 * alpha + 0.01 * seed, alpha=alpha, beta=beta)
        for alpha in (0.0, 0.5)
        for beta in (0.0, 1.0)
        for seed in range(2)
    ]
    (study,) = find([*sweep, *PLAIN, *SHUFFLED, run(0, 0.0, alpha=0.9, teacher="b" * 32)]).studies
    assert len(study.sweep) == 4
    assert not isinstance(study.anova, str)
    assert study.anova.runs == 8
    assert [effect.term for effect in study.anova.effects] == ["alpha", "beta", "alpha x beta"]


def test_teachers_whose_cache_is_gone_have_no_cost():
    found = find(TAUGHT)
    assert found.costs == ()
    (line,) = found.unknown_costs
    assert line.startswith("teacher ffffffffffff: its cost is not known: cache c: ")


def test_a_figure_that_is_no_number_is_missing():
    found = find([*PLAIN, *TAUGHT, run(5, math.nan)])
    taught = found.studies[0].rows[1]
    assert taught.condition.by_seed.keys() == {0, 1, 2}
    assert len(taught.condition.runs) == 4
    assert found.document()["studies"][0]["conditions"][1]["value"]["mean"] == pytest.approx(0.85)


def test_losses_by_another_distance_are_not_compared():
    keys = {"objective": "feature", "metric": "loss"}
    runs = [run(0, 0.9, **keys), run(0, 0.5, **keys, distance="cosine")]
    assert [len(study.rows) for study in find(runs).studies] == [1, 1]


def printed(runs: list[FinishedRun], width: int) -> list[str]:
    file = StringIO()
    show_findings(find(runs), Console(file=file, width=width, highlight=False))
    return file.getvalue().splitlines()


NASTY = run(0, 0.5, name="[red]a name[/red]\x1b[2J of someone else's", control="shuffled")


def test_a_table_where_there_is_room():
    lines = printed([*PLAIN, *TAUGHT, NASTY], 100)
    (row,) = [line for line in lines if "│ distilled" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    heads = [cell.strip() for cell in lines[2].strip("┃").split("┃")]
    assert heads == ["student", "accuracy", "improvement", "p", "runs"]
    p = find([*PLAIN, *TAUGHT, NASTY]).studies[0].rows[1].p
    assert cells == ["distilled", "0.850 ± 0.050", "+0.250", f"{p:.3f}", "3"]
    (lone,) = [line for line in lines if "someone" in line]
    assert "│         0.500 │" in lone, "one run has no spread"
    assert any("[red]a name[/red]\\x1b[2J of someone else's" in line for line in lines)


def test_lines_where_there_is_none():
    lines = printed([*PLAIN, *TAUGHT, NASTY], 40)
    assert max(map(len, lines)) <= 40
    assert lines[lines.index("distilled") + 1].startswith("  0.850 ± 0.050, 3 runs, +0.250, p 0.0")
    assert "[red]a name[/red]\\x1b[2J of" in "".join(lines)
    assert not any("\x1b" in line for line in lines)


def test_weights_inside_of_several_objectives_are_swept_as_well():
    teachers = {"a": {"cache": "c"}, "b": {"cache": "d", "control": "shuffled"}}
    whole = {"cache": None, "teachers": teachers | {"b": {"cache": "d"}}}

    def objectives(alpha: float, beta: float) -> list[dict[str, Any]]:
        one = {"name": "armada", "teacher": "a", "alpha": alpha, "beta": beta}
        return [{"name": "feature", "teacher": "b"}, one]

    swept = [
        run(seed, alpha + beta / 7 + seed / 50, objectives=objectives(alpha, beta), **whole)
        for seed in range(2)
        for alpha in (0.0, 1.0)
        for beta in (0.0, 1.0)
    ]
    control = run(0, 0.1, objectives=objectives(0.0, 0.0), **whole | {"teachers": teachers})
    (study,) = find([*swept, control], from_afar=False).studies
    assert len(study.sweep) == 4
    assert {row.condition.control for row in study.rows} == {"none", "shuffled"}
    assert study.rows[-1].condition.control == "shuffled"
    assert not isinstance(study.anova, str)
    assert {effect.term for effect in study.anova.effects} == {"alpha", "beta", "alpha x beta"}
    names = {row.condition.name for row in study.rows}
    assert (
        "distilled, teachers.b.control=none, objectives.1.alpha=1.0, objectives.1.beta=0.0" in names
    )
