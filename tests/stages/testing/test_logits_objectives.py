"""The contract of objectives for those of `objectives/logits.py`."""

from armada.testing import ObjectiveTests


class TestKD(ObjectiveTests):
    objective = "kd"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": "warm"}


class TestLearnedTemperature(TestKD):
    options = {"temperature": "learned"}
    tasks = ("classification", "multilabel")  # numbers of a regression have no temperature
