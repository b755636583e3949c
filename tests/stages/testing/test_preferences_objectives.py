"""The contract of objectives for those of `objectives/preferences.py`."""

from armada.testing import PairObjectiveTests


class TestDPO(PairObjectiveTests):
    objective = "dpo"
    changing = {
        **{"beta": 0.5, "preference_loss": "hinge", "label_smoothing": 0.2},
        **{"length_normalised": True, "sft_weight": 0.5},
    }
    refused = {"beta": 0, "preference_loss": "exo", "label_smoothing": 0.5, "sft_weight": -1}


class TestDPOByIPO(TestDPO):
    options = {"preference_loss": "ipo", "length_normalised": True, "sft_weight": 1.0}
    changing = {**TestDPO.changing, "length_normalised": False}
    untried = ("label_smoothing",)  # refused beside ipo
    changing.pop("label_smoothing")


class TestPLaD(PairObjectiveTests):
    objective = "plad"
    changing = {"beta": 0.5, "margin": 2.0, "length_normalised": False, "sft_weight": 0.0}
    refused = {"beta": -1, "margin": -0.5, "sft_weight": -1}
