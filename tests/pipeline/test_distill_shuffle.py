"""`shuffle`: how an epoch goes through features that do not fit into memory."""

import pytest
from armada.stages.store.reading import access


@pytest.fixture
def no_memory(monkeypatch):
    """Every feature is larger than what is left."""
    monkeypatch.setattr(access, "COLD_SHARE", 0.0)


@pytest.mark.usefixtures("no_memory")
def test_random_reads_from_disk_are_warned_of(armada, distill_bench, tmp_path):
    result = armada(*distill_bench.words(tmp_path / "full"))
    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "'embedding'" in warnings[0]
    assert "shuffle=block" in warnings[0]
    result = armada(*distill_bench.words(tmp_path / "block", "--set", "shuffle=block"))
    assert (result.code, result.err) == (0, "")


def test_features_in_memory_need_no_warning(armada, distill_bench, tmp_path):
    result = armada(*distill_bench.words(tmp_path / "full"))
    assert (result.code, result.err) == (0, "")


def test_other_words_are_refused(distill_bench, tmp_path, refused):
    line = refused(*distill_bench.words(tmp_path / "run", "--set", "shuffle=some"))
    assert "shuffle" in line
    assert "'full' or 'block'" in line
