"""JSON Schemas of job files, for editors that complete keys, explain them and underline mistakes.

    armada schema distill > distill.schema.json
    # yaml-language-server: $schema=distill.schema.json      (first line of a job file)

They are those of the jobs' own models, so that key, type, limit and description stand once. Options
of teachers and objectives are keys of a job, too: here are those of all that are installed. Which
options go with which teacher or objective, and what keys say together, only the command checks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..cache_schemas.errors import JobError
from ..stages.distill.objectives import OBJECTIVES
from ..stages.precompute.teachers import TEACHERS
from .ablation.job import NAME, AblateJob
from .distill_job import DistillJob
from .evaluate_job import EvaluateJob
from .objective_keys import ObjectiveKeys, objective_options
from .precompute_job import PrecomputeJob, teacher_options
from .predict import PredictJob

Schema = dict[str, Any]
Options = Mapping[str, type[BaseModel]]
"""Name of a teacher or an objective -> its options."""

_JOBS: Mapping[str, type[BaseModel]] = {
    "precompute": PrecomputeJob,
    "distill": DistillJob,
    "ablate": DistillJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
}
_DEFINED = "#/$defs/"
_ITEMS = r"^\w+\."
"""Keys inside of others, `objectives.1.weight`."""


def job_schema(command: str) -> Schema:
    """The schema of the job files of a command (draft 2020-12). Raises JobError."""
    if command not in _JOBS:
        raise JobError(f"schema {command!r}: is not a command with a job; name {', '.join(_JOBS)}")
    job, options = _JOBS[command], _options(command)
    models = _models(job, AblateJob, ObjectiveKeys, *options.values())
    for taker in (job, ObjectiveKeys):
        keys = models[taker.__name__]["properties"]
        keys |= {name: each for name, each in _merged(options).items() if name not in keys}
    schema = models[job.__name__]
    if command == "ablate":
        schema = _with_grid(schema, models[AblateJob.__name__])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"job of armada {command}",
        "$defs": {name: models[name] for name in sorted(_reached(schema, models))},
    }


def _models(*models: type[BaseModel]) -> dict[str, Schema]:
    """Name -> schema, of models and of what they are made of."""
    schemas: dict[str, Schema] = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)],
        ref_template=_DEFINED + "{model}",
    )[1]["$defs"]
    return schemas


def _options(command: str) -> Options:
    if command == "precompute":
        return {kind: teacher_options(kind) for kind in TEACHERS.names()}
    if command in ("distill", "ablate"):
        return {name: objective_options(name) for name in OBJECTIVES.names()}
    return {}


def _merged(options: Options) -> dict[str, Schema]:
    """Option -> what it may be, of any of those that have it, who are named in its description."""
    found: dict[str, dict[str, Schema]] = {}
    for name, model in options.items():
        own = model.model_json_schema(ref_template=_DEFINED + "{model}")
        for key, schema in own.get("properties", {}).items():
            found.setdefault(key, {})[name] = schema
    return {key: _one_of_them(of_each) for key, of_each in found.items()}


def _one_of_them(of_each: Mapping[str, Schema]) -> Schema:
    different = {str(schema): schema for schema in of_each.values()}
    told = {schema.get("description", ""): None for schema in different.values()}
    description = f"{' / '.join(told)} ({', '.join(of_each)})"
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
