"""Which operations make a host wait for its device, seen on a CPU."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Self

import armada
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
WAITING = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
    _ATEN.bincount.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN.linalg_matrix_exp.default,
    _ATEN._linalg_check_errors.default,
}
"""What reads a number of its input, or whose result is as long as the numbers say."""
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}

_METHODS = {
    method: f"Tensor.{method.__name__}"
    for method in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)
}
"""What reads a tensor of a CPU without any operation."""

_PRODUCT = str(Path(armada.__file__).parent)


class HostReads(TorchDispatchMode):
    """Counts operations that would wait for a GPU, by the line of armada, or of another library
    below it, that asks: `found[name of the operation, line]`, while `watching`."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.found: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Self:
        self._methods = _Methods(self)
        self._methods.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._methods.__exit__(*raised)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITING or _chooses_by_truth(func, args):
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Count a read of that name."""
        if self.watching:
            self.found[name, _asked_at()] += 1


class _Methods(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _METHODS:
            self._reads.note(_METHODS[func])
        return func(*args, **(kwargs or {}))


def _chooses_by_truth(func: Any, args: tuple[Any, ...]) -> bool:
    return func in _INDEXING and any(
        isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8)
        for each in args[1]
    )


def _asked_at() -> str:
    """The innermost line outside of torch and of this file."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and "/torch/" not in frame.filename:
            name = frame.filename.removeprefix(_PRODUCT).rpartition("site-packages")[2]
            return f"{name}:{frame.lineno} {frame.line}"
    return "an unknown line"
