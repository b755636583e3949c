"""Kernels compiled for GPUs that are not here, as Triton specialises them when they are launched:
strides of 1, sizes that 16 divides. What they need of a device is read off the machine code."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from armada.stages.distill import fused
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton")

from armada.stages.distill import kernels  # noqa: E402
from packaging.version import Version  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver, jit  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = {"A100": 80, "H100": 90, "B200": 100}
REGISTERS = 128 if Version(triton.__version__) >= Version("3.8") else 170
"""Of a thread: four blocks of four warps fit on a multiprocessor, which has 65,536; three where an
earlier Triton takes more for classes that are no multiple of 16."""

pytestmark = pytest.mark.skipif(not CUOBJDUMP.exists(), reason="Triton comes without cuobjdump")


@dataclass(frozen=True)
class Absent:
    """A driver of a GPU that is not there: kernels are compiled for it, and none is loaded."""

    architecture: int

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


Compiled = list[Any]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiled:
    """The kernels that are launched; they are compiled instead."""
    run, found = jit.JITFunction.run, Compiled()

    def compile_only(kernel: Any, *args: Any, warmup: bool, **more: Any) -> None:
        found.append(run(kernel, *args, warmup=True, **more))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    return found


def launch(rows: int, classes: int, width: int, manifold: Any, dtype: torch.dtype) -> None:
    """The loss of these sizes, on tensors without numbers."""

    def heads(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes = (classes, classes, width)
        one, two, three = (torch.empty(rows, n, dtype=dtype, device="meta") for n in sizes)
        return one, two, three

    regression = classes == 1
    kind = torch.float32 if regression else torch.int64
    kernels.armada(
        *heads(dtype),
        aligner=heads(torch.float32),
        labels=torch.empty(rows, dtype=kind, device="meta"),
        weights=(0.5, 1.0, 1.0),
        temperature=None if regression else 5.0,
        manifold=manifold,
    )


def needs(kernel: Any, folder: Path) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    said = subprocess.run(
        [CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True
    )
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found is not None, said
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize(
    ("sizes", "dtype", "manifolds"),
    [
        ((1, 1, 1), torch.bfloat16, ["cosine"]),
        ((32, 2, 1024), torch.bfloat16, ["cosine", "euclid", "pointwise"]),
        ((33, 3, 1000), torch.float16, ["cosine"]),
        ((16, 1, 16384), torch.float32, ["pointwise"]),
        ((256, fused.MOST_CLASSES, 768), torch.bfloat16, ["cosine", "pointwise"]),
        ((256, fused.MOST_CLASSES - 1, 768), torch.float32, ["cosine"]),
    ],
    ids=str,
)
def test_kernels_fit_a_gpu(
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    manifolds: list[str],
    architecture: int,
    compiled: Compiled,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(driver, "_active", Absent(architecture))
    for manifold in manifolds:
        launch(*sizes, manifold, dtype)
    assert len(compiled) == 2 * len(manifolds)
    for kernel in compiled:
        registers, stack = needs(kernel, tmp_path)
        assert (registers <= REGISTERS, stack) == (True, 0), (kernel.name, registers, stack)


@pytest.mark.parametrize(
    ("classes", "tried"), [(fused.MOST_CLASSES, 1), (fused.MOST_CLASSES + 1, 0)]
)
def test_more_classes_than_registers_hold_go_by_the_closed_form(
    classes: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(fused, "_tried", lambda inputs, others: calls.append(inputs))
    with FakeTensorMode():
        inputs = [torch.empty(4, n, device="cuda") for n in (classes, classes, 8)]
        assert fused.by_kernels(*inputs) is None
    assert len(calls) == tried
