"""The contract of objectives for those of `objectives/armada.py`."""

from armada.testing import ObjectiveTests


class TestArmada(ObjectiveTests):
    objective = "armada"
    options = {"aligner_hidden_size": 8}
    changing = {
        **{"alpha": 0.9, "beta": 3.0, "gamma": 0.0, "temperature": 2.0, "manifold": "euclid"},
        **{"aligner_hidden_size": 5, "orthogonal_projection": True},
    }
    untried = ("orthogonal_map",)  # of maps that start alike
    refused = {
        **{"alpha": 1.5, "beta": -1, "gamma": -1, "temperature": 0, "manifold": "sphere"},
        **{"aligner_hidden_size": 0, "orthogonal_map": "none"},
    }


class TestPointwise(TestArmada):
    options = {"aligner_hidden_size": 8, "manifold": "pointwise", "orthogonal_projection": True}
    changing = {**TestArmada.changing, "orthogonal_projection": False}
