"""What a run imports, imported once by the server that the runs are forked from (`parallel.py`)."""

from importlib import import_module

from ..imports import kept_imports

_MODULES = (
    "armada.pipeline.ablation.parallel",
    *("torch.utils.tensorboard", "sklearn.metrics", "scipy.stats"),  # imported in mid-run
)

with kept_imports():
    for _module in _MODULES:
        import_module(_module)
