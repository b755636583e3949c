"""What texts are padded to, by each rule."""

import numpy as np
import pytest
from armada.stages.precompute.teachers.options import PaddingOptions
from armada.stages.precompute.teachers.padded_lengths import padded_lengths


def growing(tokens: int) -> int:
    """The rule by counting up."""
    length = 8
    while length < tokens:
        below = max(power for power in (1, 32, 128, 256, 512, 1024, 2048) if power <= length)
        length += {1: 8, 32: 16}.get(below, below // 8)
    return length


def test_steps_grow_with_the_text() -> None:
    lengths = np.arange(4097)
    padded = padded_lengths(lengths, 10**30, "growing_steps")
    assert padded.tolist() == [growing(tokens) for tokens in lengths]
    waste = (padded - lengths)[129:] / lengths[129:]
    assert waste.max() < 1 / 8
    assert len(np.unique(padded)) == 10 + 5 * 8


def test_releases_before_had_multiples_of_16() -> None:
    padded = padded_lengths(np.array([0, 1, 16, 17, 500]), 10**30, "multiples_of_16")
    assert padded.tolist() == [16, 16, 16, 32, 512]


@pytest.mark.parametrize("padding", ["growing_steps", "multiples_of_16"])
def test_lengths_end_where_the_model_does(padding) -> None:
    assert padded_lengths(np.array([3, 30, 44, 46]), 46, padding)[1:].tolist() == [32, 46, 46]
    assert padded_lengths(np.array([3]), 5, padding).tolist() == [5]


def test_the_earlier_rule_is_in_no_fingerprint() -> None:
    assert PaddingOptions().settings()["padding"] == "growing_steps"
    assert "padding" not in PaddingOptions(padding="multiples_of_16").settings()
