"""armada: knowledge distillation with cached teachers.

    armada.precompute(corpus="texts.csv", text_column="text", teacher="hash:16", cache="cache")
    armada.distill(train="texts.csv", text_column="text", cache="cache", ..., output="run")
    armada.evaluate(student="run", corpus="test.csv")
    cache = armada.open_cache("cache")
    student = armada.load_student("run")

The commands are functions of the same keys, with typed results (`PrecomputeReport`,
`DistillReport`, ...). `open_cache` reads a cache from a folder or a URL, `CacheDataset` is its
features for a DataLoader of torch, `load_student` opens what a run left, as a module that predicts.
`Teacher` with `Example` and `Answers`, `Objective`, and `FeatureSpec` are what plug-ins are made
of; every error that is raised on purpose is an `ArmadaError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .cache_schemas.errors import ArmadaError, InputError, RunError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cache_schemas.features import FeatureSpec
    from .pipeline.calls import (
        DistillReport,
        EvaluateReport,
        Spread,
        distill,
        evaluate,
        precompute,
        predict,
    )
    from .pipeline.precompute_plan import PrecomputeReport
    from .pipeline.predict import PredictReport
    from .stages.cache_dataset import CacheDataset
    from .stages.distill.objectives.base import Objective
    from .stages.distill.saved_student import load_student
    from .stages.precompute.teachers.base import Answers, Example, Teacher
    from .stages.store.transfer.mirror import open_cache

__all__ = [
    "Answers",
    "ArmadaError",
    "CacheDataset",
    "DistillReport",
    "EvaluateReport",
    "Example",
    "FeatureSpec",
    "InputError",
    "Objective",
    "PrecomputeReport",
    "PredictReport",
    "RunError",
    "Spread",
    "Teacher",
    "__version__",
    "distill",
    "evaluate",
    "load_student",
    "open_cache",
    "precompute",
    "predict",
]

_WHERE = {
    "Answers": ".stages.precompute.teachers.base",
    "CacheDataset": ".stages.cache_dataset",
    "DistillReport": ".pipeline.calls",
    "EvaluateReport": ".pipeline.calls",
    "Example": ".stages.precompute.teachers.base",
    "FeatureSpec": ".cache_schemas.features",
    "Objective": ".stages.distill.objectives.base",
    "PrecomputeReport": ".pipeline.precompute_plan",
    "PredictReport": ".pipeline.predict",
    "Spread": ".pipeline.calls",
    "Teacher": ".stages.precompute.teachers.base",
    "distill": ".pipeline.calls",
    "evaluate": ".pipeline.calls",
    "load_student": ".stages.distill.saved_student",
    "open_cache": ".stages.store.transfer.mirror",
    "precompute": ".pipeline.calls",
    "predict": ".pipeline.calls",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that `armada --help` and the schema modules never wait for torch or zarr.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
