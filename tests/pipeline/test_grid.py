"""From a grid to its cells and runs; contradictions are refused, each in one line."""

from typing import Any

import pytest
from armada.cache_schemas.errors import JobError
from armada.pipeline.ablation.job import cells, make_ablation

KEYS = {
    "train": "train.parquet",
    "text_column": "text",
    "label_column": "label",
    "cache": "cache",
    "student": "scratch:bert",
    "output": "out",
}


def names(grid: Any, **beside: Any) -> list[str]:
    return [cell.name for cell in cells(grid, beside)]


def runs_of(grid: Any, **keys: Any) -> list[tuple[str, int, str]]:
    ablation = make_ablation(KEYS | keys | {"grid": grid})
    return [(run.name, run.seed, str(run.job.output)) for run in ablation.runs]


def refusal(grid: Any, **keys: Any) -> str:
    with pytest.raises(JobError) as caught:
        make_ablation(KEYS | keys | {"grid": grid})
    return str(caught.value)


# --- cells


def test_a_grid_is_the_product_of_its_lists():
    found = cells({"alpha": [0, 0.5], "beta": [0, 1, 2]}, {})
    assert [dict(cell.values) for cell in found] == [
        {"alpha": a, "beta": b} for a in (0, 0.5) for b in (0, 1, 2)
    ]
    assert found[4].name == "alpha=0.5, beta=1"


def test_several_grids_are_one_after_the_other():
    assert names([{"control": ["none", "undistilled"]}, {"alpha": 0}]) == [
        "distilled",
        "undistilled",
        "alpha=0",
    ]


def test_a_name_is_followed_by_what_has_several_values():
    grid = {"name": "six layers", "student": "org/bert", "student_layers": 6, "alpha": [0, 1]}
    assert names(grid) == ["six layers, alpha=0", "six layers, alpha=1"]
    assert names({"student": "org/bert", "control": "noise=2"}) == ["bert, noise=2"]


# --- runs


def test_every_cell_runs_with_every_seed_in_a_folder_of_its_own():
    assert runs_of({"control": ["none", "undistilled"]}, seed=[3, 4]) == [
        ("distilled", 3, "out/distilled/seed-3"),
        ("undistilled", 3, "out/undistilled/seed-3"),
        ("distilled", 4, "out/distilled/seed-4"),
        ("undistilled", 4, "out/undistilled/seed-4"),
    ]


def test_keys_of_the_cell_and_keys_beside_make_the_job():
    ablation = make_ablation(KEYS | {"epochs": 3, "grid": {"beta": [0.25]}})
    (run,) = ablation.runs
    assert (run.job.epochs, run.job.options["beta"], run.job.seed, run.job.name) == (
        3,
        0.25,
        0,
        "beta=0.25",
    )


def test_what_two_grids_have_in_common_is_run_once():
    # alpha is 0.5 unless it is said.
    ablation = make_ablation(KEYS | {"grid": [{"control": "none"}, {"alpha": [0, 0.5, 1]}]})
    assert [run.name for run in ablation.runs] == ["distilled", "alpha=0", "alpha=1"]
    assert ablation.repeated == 1


# --- refusals


@pytest.mark.parametrize(
    ("grid", "keys", "message"),
    [
        ([], {}, "job key 'grid': is empty"),
        ("alpha", {}, "job key 'grid': 'alpha': is not a mapping of keys to lists of values"),
        ({"alpha": []}, {}, "grid key 'alpha': has no values; name some, or leave it out"),
        ({"alpha": [0, 1, 0]}, {}, "grid key 'alpha': 0 is given twice; name it once"),
        ({"seed": [0, 1]}, {}, "grid key 'seed': cannot be swept; a list of seeds beside the grid"),
        ({"output": ["a"]}, {}, "grid key 'output': cannot be swept; every run has its own folder"),
        (
            {"alpha": [0, 1]},
            {"alpha": 0.3},
            "job key 'alpha': 0.3 is set beside the grid, which also sets [0, 1]; leave one",
        ),
        ({"alhpa": [0]}, {}, "grid key 'alhpa' is unknown; did you mean 'alpha'?"),
        ({"alpha": [0]}, {"epoch": 3}, "job key 'epoch' is unknown; did you mean 'epochs'?"),
        ({"alpha": [0, 2]}, {}, "grid, alpha=2: job key 'alpha': 2: Input should be less than"),
        ({"control": ["shufled"]}, {}, "grid, shufled: control 'shufled': is not none,"),
        ({"objective": ["armadda"]}, {}, "did you mean 'armada'?"),
        (
            {"control": ["random-aligner"], "objective": ["armada", "kd"]},
            {},
            "grid, random-aligner, objective=kd: control random-aligner: objective 'kd' has no",
        ),
        (
            {"control": ["undistilled"], "alpha": [0, 1]},
            {},
            "grid: 'undistilled, alpha=0' and 'undistilled, alpha=1' are the same student, which "
            "reads no 'alpha' (alpha=0.0 and alpha=1.0); put it into a grid of its own",
        ),
        ({"objective": ["kd"], "beta": [0, 1]}, {}, "grid key 'beta' is unknown"),
        (
            [{"student": "a/bert"}, {"student": "b/bert"}, {"alpha": 0}],
            {},
            "grid: two cells are called 'bert'; give each of their grids a 'name'",
        ),
        ({"name": ["a", "b"], "alpha": 0}, {}, "grid key 'name': a grid has one name"),
        ({"name": "…", "alpha": 0}, {}, "grid: no folder can be named after '…'"),
        (
            [{"name": "a b"}, {"name": "a-b", "alpha": 0}],
            {},
            "grid: two cells would share a folder",
        ),
        ({"alpha": 0}, {"workers": 0}, "job key 'workers'"),
    ],
)
def test_refused(grid: Any, keys: dict[str, Any], message: str):
    assert message in refusal(grid, **keys)


def test_a_grid_is_needed():
    with pytest.raises(JobError, match="job key 'grid' is missing"):
        make_ablation(KEYS)
