"""Where features lie: the same student from all places that keep the order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill import placement
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.placement import choose_placement
from tiny_runs import TEXTS, Bench, Changed, train_logged, weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices with a thousand bytes to give."""
    monkeypatch.setattr(placement, "available_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)


@pytest.mark.usefixtures("free_bytes")
@pytest.mark.parametrize(
    ("asked", "size", "device", "from_afar", "chosen"),
    [
        ("auto", 250, CUDA, False, "resident"),
        ("auto", 251, CUDA, False, "mapped"),
        ("auto", 10, CUDA, True, "mapped"),
        ("auto", 10, CPU, False, "mapped"),
        ("resident", 900, CUDA, False, "resident"),
        ("resident", 900, CPU, False, "resident"),
        ("resident", 10, CUDA, True, "resident"),
        ("mapped", 10**12, CPU, False, "mapped"),
        ("mapped", 10, CUDA, False, "mapped"),
        ("streamed", 10, CUDA, False, "streamed"),
    ],
)
def test_choice(asked, size, device, from_afar, chosen):
    assert choose_placement(asked, size, device, from_afar) == chosen


@pytest.mark.usefixtures("free_bytes")
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_no_room_is_said_with_both_sizes(device):
    with pytest.raises(JobError) as caught:
        choose_placement("resident", 3 * 2**30, device, False)
    assert str(caught.value) == (
        f"placement resident: the features of the training set take 3.00 GiB and {device} has 0.00 "
        "GiB free; use mapped, or streamed if they do not fit into memory either"
    )


@pytest.mark.parametrize("objective", ["armada", "feature", "kd"])
@pytest.mark.parametrize("control", ["none", "shuffled", "noise=0.5"])
def test_resident_features_are_the_mapped_ones(
    bench: Bench, tmp_path: Path, objective: str, control: str
) -> None:
    how = {"objective": objective, "control": control, "epochs": 2}
    mapped = bench.run(tmp_path / "mapped", placement="mapped", **how)
    resident = bench.run(tmp_path / "resident", placement="resident", **how)
    assert train_logged(mapped)[1] == train_logged(resident)[1]
    for name, weight in weights(mapped).items():
        assert torch.equal(weights(resident)[name], weight), name
    assert resident.train.apart


def test_resident_features_are_read_once_in_file_order(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, placement="resident")
    features = run.train.features[SOURCE]
    read: list[int] = []

    def noted(places: np.ndarray, found: np.ndarray) -> np.ndarray:
        read.extend(places.tolist())
        return found

    run.train.features[SOURCE] = Changed(features, noted)
    train_logged(run)
    assert len(read) == len(TEXTS)
    assert np.all(np.diff(features.file_order()[read]) > 0)


def test_the_size_of_what_is_read(bench: Bench, tmp_path: Path) -> None:
    assert bench.run(tmp_path / "a").train.features[SOURCE].bytes == len(TEXTS) * 6 * 4
    noisy = bench.run(tmp_path / "b", control="noise=1").train.features[SOURCE]
    assert noisy.bytes == noisy(np.arange(len(TEXTS))).nbytes
