"""The contract of objectives for those of `objectives/relations.py`."""

from armada.testing import ObjectiveTests


class TestRKD(ObjectiveTests):
    objective = "rkd"
    changing = {"beta": 3.0, "distance_weight": 5.0, "angle_weight": 0.0}
    refused = {"beta": -1, "distance_weight": -1, "angle_weight": -1}


class TestSimilarityPreserving(ObjectiveTests):
    objective = "similarity_preserving"
    changing = {"beta": 3.0}
    refused = {"beta": -1}


class TestInBatch(ObjectiveTests):
    objective = "in_batch"
    options = {"similarity_temperature": 0.5}
    changing = {"beta": 3.0, "similarity_temperature": 0.05}
    refused = {"beta": -1, "similarity_temperature": 0}


class TestCKA(ObjectiveTests):
    objective = "cka"
    changing = {"beta": 3.0, "debiased": True}
    refused = {"beta": -1, "debiased": "some"}


class TestDebiasedCKA(TestCKA):
    options = {"debiased": True}
    changing = {"beta": 3.0, "debiased": False}


class TestMMD(ObjectiveTests):
    objective = "mmd"
    changing = {"beta": 3.0, "kernel": "linear"}
    refused = {"beta": -1, "kernel": "cosine"}


class TestLinearMMD(TestMMD):
    options = {"kernel": "linear"}
    changing = {"beta": 3.0, "kernel": "gaussian"}


class TestGaussianMMD(TestMMD):
    options = {"kernel": "gaussian"}


class TestPrototypes(ObjectiveTests):
    objective = "prototypes"
    options = {"similarity_temperature": 0.5}
    changing = {"beta": 3.0, "similarity_temperature": 0.05, "prototype_temperature": 4.0}
    refused = {"beta": -1, "similarity_temperature": 0, "prototype_temperature": 0}
