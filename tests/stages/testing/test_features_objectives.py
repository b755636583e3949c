"""The contract of objectives for those of `objectives/features.py`."""

from armada.testing import ObjectiveTests


class TestFeature(ObjectiveTests):
    objective = "feature"
    feature_shapes = ((2, 2),)
    changing = {"beta": 0.0, "distance": "mae", "orthogonal_projection": True}
    untried = ("orthogonal_map",)  # of maps that start alike
    refused = {"beta": -1, "distance": "euclid"}


class TestFeatureByCosine(TestFeature):
    options = {"distance": "cosine"}


class TestUndistilled(ObjectiveTests):
    objective = "undistilled"
