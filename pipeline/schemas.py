"""JSON Schemas of job files, for editors that complete keys, explain them and underline mistakes.

    armada schema distill > distill.schema.json
    # yaml-language-server: $schema=distill.schema.json      (first line of a job file)

They are made from the jobs' own models, so that key, type, limit and description are written once.
Options of teachers and objectives are keys of a job, too: those of the one that the job names, if
it is installed; beside the name of another, any key may be an option. An ablation may name several
in its grid, so that its own keys are the options of all. Combinations of keys are checked only by
the command.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..cache_schemas.errors import JobError
from ..stages.distill.objectives import OBJECTIVES
from ..stages.precompute.teachers import TEACHERS
from .ablation.job import NAME, AblateJob
from .corpora.job import CorpusJob
from .distill_job import DistillJob
from .objective_keys import ObjectiveKeys, objective_options
from .precompute_job import PrecomputeJob, teacher_options
from .retrieval.mine_job import MineJob
from .student_jobs import EvaluateJob, PredictJob

Schema = dict[str, Any]
Options = Mapping[str, Schema]
"""Option -> what it may be."""

_JOBS: Mapping[str, type[BaseModel]] = {
    "precompute": PrecomputeJob,
    "distill": DistillJob,
    "ablate": DistillJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
    "corpus": CorpusJob,
    "mine": MineJob,
}
_DEFINED = "#/$defs/"
_ITEMS = r"^\w+\."
"""Keys inside of others, `objectives.1.weight`."""


def job_schema(command: str) -> Schema:
    """The schema of the job files of a command (draft 2020-12). Raises JobError."""
    if command not in _JOBS:
        raise JobError(f"schema {command!r}: is not a command with a job; name {', '.join(_JOBS)}")
    job, takers = _JOBS[command], _takers(command)
    models = _models(job, AblateJob, ObjectiveKeys, *takers.values())
    options = {name: _own(model) for name, model in takers.items()}
    if command in ("distill", "ablate"):
        models[ObjectiveKeys.__name__] = _with_options(
            models[ObjectiveKeys.__name__],
            [(_says("name", {"const": name}), own) for name, own in options.items()],
        )
    schema = models[job.__name__]
    if command == "precompute":
        kinds = {kind: {"type": "string", "pattern": f"^{kind}:"} for kind in options}
        schema = _with_options(
            schema, [(_says("teacher", kinds[kind]), own) for kind, own in options.items()]
        )
    elif command == "distill":
        schema = _with_options(schema, _short_form(options))
    elif command == "ablate":
        keys = schema["properties"]
        keys |= {name: each for name, each in _merged(options).items() if name not in keys}
        schema = _with_grid(schema, models[AblateJob.__name__])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"job of armada {command}",
        "$defs": {name: models[name] for name in sorted(_reached(schema, models))},
    }


def _with_options(keys: Schema, branches: Sequence[tuple[Schema, Options]]) -> Schema:
    """Keys and, where one of the conditions holds, its options and no other key."""
    known: dict[str, Schema | Literal[True]] = dict.fromkeys(keys["properties"], True)
    tied = [
        {
            "if": condition,
            "then": {"properties": {**options, **known}, "additionalProperties": False},
        }
        for condition, options in branches
    ]
    # Else of no condition: a plug-in that is not installed here has options of its own.
    return {**keys, "additionalProperties": True, "allOf": tied}


def _says(key: str, value: Schema) -> Schema:
    return {"properties": {key: value}, "required": [key]}


def _short_form(options: Mapping[str, Options]) -> list[tuple[Schema, Options]]:
    """A job with one objective has the options of that; one with several has none itself."""
    several = _says("objectives", {"type": "array"})
    default = DistillJob.model_fields["objective"].default
    branches: list[tuple[Schema, Options]] = [(several, {})]
    for name, own in options.items():
        says = _says("objective", {"const": name})
        if name == default:
            says = {"anyOf": [says, {"not": {"required": ["objective"]}}]}
        branches.append(({"allOf": [says, {"not": several}]}, own))
    return branches


def _models(*models: type[BaseModel]) -> dict[str, Schema]:
    """Name -> schema, of models and of what they are made of."""
    schemas: dict[str, Schema] = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)],
        ref_template=_DEFINED + "{model}",
    )[1]["$defs"]
    return schemas


def _takers(command: str) -> dict[str, type[BaseModel]]:
    """Name of a teacher or an objective -> the model of its options."""
    if command == "precompute":
        return {kind: teacher_options(kind) for kind in TEACHERS.names()}
    if command in ("distill", "ablate"):
        return {name: objective_options(name) for name in OBJECTIVES.names()}
    return {}


def _own(model: type[BaseModel]) -> Options:
    own: Options = model.model_json_schema(ref_template=_DEFINED + "{model}").get("properties", {})
    return own


def _merged(options: Mapping[str, Options]) -> Options:
    """Option -> its schema, for any that has it; its description names them."""
    found: dict[str, dict[str, Schema]] = {}
    for name, own in options.items():
        for key, schema in own.items():
            found.setdefault(key, {})[name] = schema
    return {key: _one_of_them(of_each) for key, of_each in found.items()}


def _one_of_them(of_each: Mapping[str, Schema]) -> Schema:
    different = {str(schema): schema for schema in of_each.values()}
    descriptions = {schema.get("description", ""): None for schema in different.values()}
    description = f"{' / '.join(descriptions)} ({', '.join(of_each)})"
    if len(different) == 1:
        return {**next(iter(different.values())), "description": description}
    return {"anyOf": list(different.values()), "description": description}


def _with_grid(job: Schema, ablation: Schema) -> Schema:
    """A job of `ablate`: nearly every key of a run may be in the grid instead, with a list of its
    values."""
    keys = {
        name: {"$ref": f"{_DEFINED}{DistillJob.__name__}/properties/{name}"}
        for name in job["properties"]
    }
    swept = {key: {"anyOf": [each, {"type": "array", "items": each}]} for key, each in keys.items()}
    grid = {
        "type": "object",
        "properties": {**swept, NAME: {"type": "string", "description": "of the grid's cells"}},
        "patternProperties": {_ITEMS: True},
        "additionalProperties": False,
    }
    own: dict[str, Schema] = ablation["properties"]
    own["grid"] |= {"anyOf": [grid, {"type": "array", "items": grid}]}
    return {**job, "properties": {**keys, **own}, "required": ablation["required"]}


def _reached(schema: Any, models: Mapping[str, Schema]) -> set[str]:
    """Names of the definitions that a schema refers to, and those do."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(models[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(_DEFINED).partition("/")[0]
    for part in schema.values() if isinstance(schema, Mapping) else schema:
        if isinstance(part, Mapping | list):
            yield from _references(part)
