"""The contract of objectives for those of `objectives/relations.py`."""

from armada.testing import ObjectiveTests


class TestRKD(ObjectiveTests):
    objective = "rkd"
    changing = {"beta": 3.0, "distance_weight": 5.0, "angle_weight": 0.0}
    refused = {"beta": -1, "distance_weight": -1, "angle_weight": -1}
