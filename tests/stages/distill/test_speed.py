"""Compiled students and students without kept activations: the same numbers up to rounding."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from armada.cache_schemas.errors import JobError, StudentSourceError
from armada.stages.distill.settings import TrainingSettings
from armada.stages.distill.training import deterministic_kernels, speed_up, train
from tiny_runs import Bench, freeze_dropout, train_logged

CPU = torch.device("cpu")


def losses(
    bench: Bench, folder: Path, lora_rank: int | None = None, **settings: bool
) -> list[float]:
    run = bench.run(folder, dropout=0.0, epochs=2, lora_rank=lora_rank)
    torch.manual_seed(1)
    speed_up(run.model.student, TrainingSettings(**settings), run.device)
    return train_logged(run)[1]


@pytest.fixture(scope="module")
def expected(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(bench, tmp_path_factory.mktemp("plain"))


def test_checkpointing_changes_nothing(bench, tmp_path, expected):
    """Dropout too: a layer that is worked out again drops what it dropped before."""
    assert losses(bench, tmp_path, gradient_checkpointing=True) == pytest.approx(expected, rel=1e-6)


def test_checkpointing_changes_nothing_below_adapters(bench, tmp_path):
    found, expected = (
        losses(bench, tmp_path / str(asked), lora_rank=2, gradient_checkpointing=asked)
        for asked in (True, False)
    )
    assert found == pytest.approx(expected, rel=1e-6)


def test_checkpointing_works_layers_out_again(bench, tmp_path):
    run = bench.run(tmp_path)
    speed_up(run.model.student, TrainingSettings(gradient_checkpointing=True), CPU)
    calls = []
    layer = run.model.student.backbone.encoder.layer[0].output.dense
    layer.register_forward_hook(lambda *_: calls.append(1))
    run.model.train()
    batch = run.train.__getitems__([0, 1, 2])
    del batch["indices"]
    run.model(**batch)["loss"].backward()
    assert len(calls) == 2


@pytest.mark.slow
def test_compiling_changes_nothing_but_what_dropout_draws(bench, tmp_path):
    student = freeze_dropout(shutil.copytree(bench.student, tmp_path / "bert"))
    bench = Bench(student, bench.cache)
    expected = losses(bench, tmp_path / "plain")
    compiled = losses(bench, tmp_path / "compiled", compile_student=True)
    assert compiled == pytest.approx(expected, rel=1e-4)


def test_a_compiler_that_does_not_work_is_said(bench, tmp_path, monkeypatch):
    def broken(function):
        def compiled(tensor):
            raise RuntimeError("no C++ compiler\nat all")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    run = bench.run(tmp_path)
    with pytest.raises(JobError) as caught:
        speed_up(run.model.student, TrainingSettings(compile_student=True), CPU)
    assert str(caught.value) == (
        "compile_student: torch.compile does not work here: no C++ compiler; leave it out"
    )


def test_a_student_that_cannot_be_checkpointed(bench, tmp_path, monkeypatch):
    run = bench.run(tmp_path)
    monkeypatch.setattr(type(run.model.student.backbone), "supports_gradient_checkpointing", False)
    with pytest.raises(
        StudentSourceError, match="gradient_checkpointing: a bert does not support it"
    ):
        speed_up(run.model.student, TrainingSettings(gradient_checkpointing=True), CPU)


def test_deterministic_kernels_are_asked_for_on_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def asked() -> tuple[object, ...]:
        attention = torch.backends.cuda
        fused = (attention.flash_sdp_enabled(), attention.mem_efficient_sdp_enabled())
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        return torch.are_deterministic_algorithms_enabled(), *fused, workspace

    before = asked()
    assert before == (False, True, True, None)
    with deterministic_kernels(CPU):
        assert asked() == before
    with deterministic_kernels(torch.device("cuda")):
        assert asked() == (True, False, False, ":4096:8")
        assert torch.backends.cuda.math_sdp_enabled()
    assert asked()[:3] == before[:3]


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    one, at = torch.zeros(3), torch.tensor([1])
    with (
        pytest.raises(JobError, match=r"^deterministic: put_.* does not have a deterministic"),
        deterministic_kernels(torch.device("cuda")),
    ):
        one.put_(at, torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_a_deterministic_run_is_any_run(bench, tmp_path, expected):
    assert losses(bench, tmp_path, deterministic=True) == expected


def test_matrix_products_are_of_the_precision_of_the_run_alone(bench, tmp_path) -> None:
    seen: set[str] = set()
    for precision in ("high", "highest"):
        run = bench.run(tmp_path / precision, epochs=1, matmul_precision=precision)
        train(replace(run, on_step=lambda _: seen.add(torch.get_float32_matmul_precision())))
        assert seen == {precision}
        assert torch.get_float32_matmul_precision() == "highest"
        seen.clear()
