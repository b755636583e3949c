"""armada: knowledge distillation with cached teachers.

Stage 1 (`armada precompute`) asks a frozen teacher once about every text of a corpus and keeps its
answers in a cache. Stage 2 (`armada distill`) trains students from that cache. `open_cache` reads
one from Python, from a folder or a URL; `load_student` opens what a run left, as a module that
predicts; `precompute`, `distill` and `evaluate` are the commands as functions.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "evaluate", "load_student", "open_cache", "precompute"]

if TYPE_CHECKING:
    from .pipeline.calls import distill, evaluate, precompute
    from .stages.distill.saved_student import load_student
    from .stages.store.transfer.mirror import open_cache


def __getattr__(name: str) -> Any:
    # Lazily, so that `armada --help` and the schema modules never wait for zarr.
    if name in ("precompute", "distill", "evaluate"):
        from .pipeline import calls

        return getattr(calls, name)
    if name == "open_cache":
        from .stages.store.transfer.mirror import open_cache

        return open_cache
    if name == "load_student":
        from .stages.distill.saved_student import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
