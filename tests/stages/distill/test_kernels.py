"""Kernels for GPUs: interpreted on a CPU, and where there is a GPU, on that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kernels_worker
import pytest
import torch
from armada.stages.distill import closed_forms, fused, kernels, losses
from hangs import HANG_S


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_terms_and_gradients_are_those_of_the_closed_forms(device: str) -> None:
    tests = Path(kernels_worker.__file__).parent
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, kernels_worker.__file__, device],
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(device == "cpu"))},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert worst["term torch.float32"] < 5e-6
    assert worst["gradient torch.float32"] < 5e-6
    # The inputs are the same rounded numbers; only the gradients are rounded once more.
    assert worst["term torch.bfloat16"] < 5e-6
    assert worst["gradient torch.bfloat16"] < 2**-8
    assert worst["term torch.float16"] < 5e-6
    assert worst["gradient torch.float16"] < 2**-10


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Triton is there and does not work, for tensors that would be on a GPU."""

    def compile_kernel(*_: object, **__: object) -> None:
        raise RuntimeError("no C compiler\nat all")

    monkeypatch.setattr(kernels, "armada", compile_kernel)
    monkeypatch.setattr(fused, "_broken", [])
    monkeypatch.setattr(fused, "by_kernels", lambda *inputs, **others: fused._tried(inputs, others))


@pytest.mark.usefixtures("broken")
def test_where_triton_does_not_work_that_is_said_once_and_losses_are_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    inputs = kernels_worker.drawn(5, 3, 8, torch.float32)
    how = {"labels": kernels_worker.labels_of(5, 3), "temperature": 2.0, "manifold": "cosine"}
    weights = {"alpha": 0.5, "beta": 1.0, "gamma": 1.0, "regression": False}
    terms = closed_forms.armada_loss(**inputs, **how, **weights)
    again = closed_forms.armada_loss(**inputs, **how, **weights)
    (said,) = caplog.messages
    assert said.startswith("Triton does not work here (RuntimeError: no C compiler); ")
    expected = losses.armada_loss(**inputs, **how, **weights)
    assert torch.equal(terms.total, again.total)
    torch.testing.assert_close(terms.total, expected.total)


def test_on_a_cpu_no_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_tried", lambda *_: pytest.fail("a kernel was tried"))
    inputs = kernels_worker.drawn(5, 3, 8, torch.float32)
    assert fused.by_kernels(*inputs.values()) is None


@pytest.mark.gpu
def test_a_loss_takes_three_kernels() -> None:
    inputs = {n: t.cuda() for n, t in kernels_worker.drawn(32, 2, 1024, torch.bfloat16).items()}
    how = {"labels": kernels_worker.labels_of(32, 2).cuda(), "temperature": 5.0}
    student = [t.requires_grad_() for name, t in inputs.items() if name.startswith("student")]

    def step() -> None:
        terms = closed_forms.armada_loss(
            **inputs, **how, alpha=0.5, beta=1.0, gamma=1.0, manifold="cosine", regression=False
        )
        terms.total.backward(torch.ones_like(terms.total), inputs=student)

    step()  # compiled by now
    for tensor in student:
        tensor.grad = None
    ones = torch.ones((), device="cuda")
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        terms = closed_forms.armada_loss(
            **inputs, **how, alpha=0.5, beta=1.0, gamma=1.0, manifold="cosine", regression=False
        )
        torch.autograd.grad(terms.total, student, ones)
        torch.cuda.synchronize()
    started = [event for event in profile.events() if event.device_type.name == "CUDA"]
    assert len(started) <= 3, [event.name for event in started]
