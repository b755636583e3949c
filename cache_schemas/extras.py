"""Optional packages, imported where they are first needed.

The core reads caches, runs transformers teachers and trains students. What only some need comes by
`pip install 'armada-kd[EXTRA]'`, and all of it by `[all]`.
"""

from importlib.util import find_spec
from typing import Literal

from .errors import MissingExtraError

Extra = Literal[
    "teachers",
    "cluster",
    "report",
    "lora",
    "api",
    "s3",
    "datasets",
    "onnx",
    "faiss",
    "vllm",
    "mteb",
    "test",
    "all",
]


def require_extra(what: str, extra: Extra, *packages: str) -> None:
    """Raises MissingExtraError where `what`, for people, needs packages that are not installed.

    Nothing is imported: some of them take seconds."""
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        *others, last = lacking
        named = f"{', '.join(others)} and {last}" if others else last
        raise MissingExtraError(f"{what} needs {named}: pip install 'armada-kd[{extra}]'")
