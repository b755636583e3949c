"""The contract of objectives for those of `objectives/teachers.py`."""

from armada.testing import ObjectiveTests


class TestMultiKD(ObjectiveTests):
    objective = "multi_kd"
    feature_shapes = ((3,), (3,), (3,))
    changing = {
        "alpha": 0.9,
        "temperature": 2.0,
        "fusion": "confidence",
        "weights": (1, 2, 0),
        "fused": "logits",
        "standardize": True,
    }
    untried = ("gate_hidden_size",)  # of a gate alone, below
    refused = {"alpha": -0.1, "temperature": 0, "weights": (-1, 1, 1), "fusion": "none"}


class TestConfidence(TestMultiKD):
    options = {"fusion": "confidence"}
    changing = {"alpha": 0.9, "temperature": 2.0, "fusion": "entropy", "fused": "logits"}
    untried = ("gate_hidden_size", "weights", "standardize")


class TestAgreement(TestConfidence):
    options = {"fusion": "agreement", "standardize": True}


class TestGate(TestConfidence):
    options = {"fusion": "gate", "gate_hidden_size": 5}

    def test_gradients_are_those_of_the_loss(self) -> None:
        """Not so: what the gate learns by does not reach the student, and the other way round;
        `test_fused_teachers.py` has what it learns."""
