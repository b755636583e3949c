"""`armada schema`: what editors are told of job files, against recipes, docs, and a validator."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.cache_schemas.errors import JobError
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.objective_keys import objective_options
from armada.pipeline.schemas import job_schema
from armada.stages.distill.objectives import OBJECTIVES as REGISTERED
from command_line import CommandLine
from docs_pages import PAGES, ROOT, blocks
from jsonschema import Draft202012Validator
from recipes_material import COMMANDS, FILES, command_of, keys_of

COMMANDS_WITH_JOBS = ("precompute", "distill", "ablate", "evaluate", "predict")
JOB: dict[str, Any] = {
    **{"train": "train.csv", "text_column": ["text", "context?"], "label_column": "label"},
    **{"student": "scratch:bert", "cache": "cache", "output": "run"},
}
OBJECTIVES = [{"name": "armada", "teacher": "clip", "alpha": 0.5}]


@cache
def validator(command: str) -> Draft202012Validator:
    return Draft202012Validator(job_schema(command))


def problems(command: str, keys: Any) -> list[str]:
    """As an editor lists them, dates and tuples as JSON has them."""
    document = json.loads(json.dumps(keys, default=str))
    return [error.message for error in validator(command).iter_errors(document)]


@pytest.mark.parametrize("command", COMMANDS_WITH_JOBS)
def test_they_are_schemas_and_say_what_keys_mean(command: str, armada: CommandLine) -> None:
    printed = json.loads(armada.done("schema", command))
    assert printed == json.loads(json.dumps(job_schema(command)))
    Draft202012Validator.check_schema(printed)
    for name, key in printed["properties"].items():
        place = key
        if "$ref" in key:
            _, _, model, _, of_model = key["$ref"].split("/")
            place = printed["$defs"][model]["properties"][of_model]
        assert place["description"], name


@pytest.mark.parametrize("file", FILES, ids=str)
def test_recipes_are_jobs(file: Path) -> None:
    assert problems(COMMANDS[file], keys_of(file)) == []


JOBS_IN_DOCS = [
    pytest.param(keys, id=f"{page.name}, line {block.line}")
    for page in (ROOT / "README.md", *PAGES)
    for block in blocks(page.read_text(encoding="utf-8"))
    if block.language == "yaml" and isinstance(keys := yaml.safe_load(block.code), dict)
    if {"train", "corpus"} & keys.keys()
]


@pytest.mark.parametrize("keys", JOBS_IN_DOCS)
def test_jobs_in_docs_are_jobs(keys: dict[str, Any]) -> None:
    assert problems(command_of(keys), keys) == []


RIGHT = [
    {},
    {"label_column": ["label"]},
    {"label_column": ["one", "two"], "task": "regression"},
    {"alpha": 0.5, "temperature": "learned", "objective": "kd"},
    {"mirror_limit": "50GiB", "report_to": "none", "seed": [0, 1]},
    {"teachers": {"clip": {"cache": "c", "text_column": "hint"}}, "objectives": OBJECTIVES},
    {"objectives": [{"name": "feature", "weight": {"from": 1, "to": 0}, "distance": "cosine"}]},
]


@pytest.mark.parametrize("more", RIGHT, ids=str)
def test_what_a_job_takes(more: dict[str, Any]) -> None:
    """The validator and the job itself agree."""
    keys = {**JOB, **more}
    if "teachers" in more:
        del keys["cache"]
    make(DistillJob, keys)
    assert problems("distill", keys) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epoch": 3}, "'epoch' was unexpected"),
        ({"alpha": 2}, "2 is greater than the maximum of 1"),
        ({"distance": "cosine"}, "'distance' was unexpected"),
        ({"objective": "kd", "beta": 1}, "'beta' was unexpected"),
        ({"objectives": OBJECTIVES, "alpha": 0.5}, "'alpha' was unexpected"),
        ({"epochs": "many"}, "'many' is not of type 'integer'"),
        ({"precision": "fp8"}, "'fp8' is not one of"),
        ({"objectives": [{"nam": "armada"}]}, "is not valid"),
        ({"teachers": {"clip": {"cash": "c"}}}, "is not valid"),
    ],
    ids=str,
)
def test_what_an_editor_underlines(more: dict[str, Any], message: str) -> None:
    (found,) = problems("distill", {**JOB, **more})
    assert message in found


def test_grids(armada: CommandLine) -> None:
    def grid(*cells: Any) -> list[str]:
        return problems("ablate", {**JOB, "grid": cells[0] if len(cells) == 1 else list(cells)})

    assert grid({"alpha": [0, 1], "control": "none", "student": ["a", "b"]}) == []
    assert grid({"name": "one", "alpha": 0.5}, {"objectives.0.weight": [0, 1]}) == []
    assert grid({"text_column": [["text"], ["text", "more"]]}) == []
    assert len(grid({"alfa": [0, 1]})) == 1
    assert len(grid({"alpha": [0, 2]})) == 1
    assert problems("ablate", JOB) == ["'grid' is a required property"]


OPTIONS = {name: objective_options(name).model_fields for name in REGISTERED.names()}
GIVEN = {
    option: field.get_default(call_default_factory=True)
    for fields in OPTIONS.values()
    for option, field in fields.items()
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_objective_has_its_own_options_alone(name: str) -> None:
    """In a list of objectives; the job itself agrees."""
    job = {**JOB, "task": "language"} if name == "tokens" else JOB

    def with_options(*options: str) -> dict[str, Any]:
        given = {option: GIVEN[option] for option in options}
        return {**job, "objectives": [{"name": name, **given}]}

    assert problems("distill", with_options(*OPTIONS[name])) == []
    for option in OPTIONS[name]:
        make(DistillJob, with_options(option))
    others = sorted(GIVEN.keys() - OPTIONS[name].keys())
    for option in others:
        with pytest.raises(JobError, match=option):
            make(DistillJob, with_options(option))
    # Deep in the list the schema says which ones, as editors show it.
    keys = with_options(*others)
    (error,) = validator("distill").iter_errors(json.loads(json.dumps(keys)))
    assert error.context
    said = next(inner.message for inner in error.context if "unexpected" in inner.message)
    assert all(f"'{option}'" in said for option in others)
    assert problems("ablate", {**keys, "grid": {"seed": [0, 1]}})


def test_options_of_plug_ins_that_are_not_installed() -> None:
    """They are not known here: any key may be one."""
    own = {"mine": 1, "alpha": "any"}
    assert problems("distill", {**JOB, "objective": "my_own", **own}) == []
    assert problems("distill", {**JOB, "objectives": [{"name": "my_own", **own}]}) == []
    (found,) = problems("distill", {**JOB, "objective": "my_own", "epochs": "many"})
    assert "'many'" in found
    job = {"corpus": "a.csv", "text_column": "text", "cache": "c"}
    assert problems("precompute", {**job, "teacher": "my_own:x", "mine": 1}) == []


def test_options_of_teachers(armada: CommandLine) -> None:
    job = {"corpus": "a.csv", "text_column": "text", "teacher": "hash:4", "cache": "c"}
    assert problems("precompute", {**job, "seed": 3, "part": "1/4"}) == []
    encoder = {**job, "teacher": "encoder:org/name"}
    assert problems("precompute", {**encoder, "pooling": "cls", "limit": 8}) == []
    for taker, option in ((encoder, {"top_k": 8}), (job, {"pooling": "cls"}), (job, {"sead": 1})):
        (found,) = problems("precompute", {**taker, **option})
        assert f"'{next(iter(option))}' was unexpected" in found
    alpha = job_schema("ablate")["$defs"]["DistillJob"]["properties"]["alpha"]
    assert {"armada", "kd"} <= set(alpha["description"].rpartition("(")[2].split(", "))
    result = armada("schema", "report")
    assert result.code == 2
    assert result.error.startswith(
        "schema 'report': is not a command with a job; name precompute, "
    )
