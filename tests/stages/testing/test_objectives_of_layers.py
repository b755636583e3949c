"""An objective that reads layers, tested as its author would; and what the tests find."""

from pathlib import Path

import pytest
from armada.testing import ObjectiveTests

PLUG_INS = Path(__file__).parents[2] / "hint_objective"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)


class TestHint(ObjectiveTests):
    objective = "hint"
    changing = {"layers": (1, -1), "beta": 0.5}
    refused = {"layers": (), "beta": -1}


class TestHintsOfSeveralWidths(TestHint):
    options = {"layers": (0, 2, -1)}
    layer_dims = (3, 6, 5, 4)


@pytest.mark.parametrize(
    ("name", "test", "message"),
    [
        ("hint_of_padding", "padding_changes_nothing", "total depends on padding"),
        ("hint_of_one", "it_reads_what_it_declares", "layer 0 is not read"),
    ],
)
def test_faults_of_objectives_of_layers(name: str, test: str, message: str) -> None:
    class Kit(ObjectiveTests):
        objective = name

    kit = Kit()
    with pytest.raises(AssertionError, match=message):
        getattr(kit, f"test_{test}")(kit._sizes(regression=False))
