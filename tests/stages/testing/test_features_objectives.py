"""The contract of objectives for those of `objectives/features.py`."""

from armada.testing import ObjectiveTests


class TestFeature(ObjectiveTests):
    objective = "feature"
    feature_shapes = ((2, 2),)
    changing = {
        **{"beta": 0.0, "distance": "mae", "orthogonal_projection": True},
        "projector": "mlp",
    }
    untried = ("orthogonal_map",)  # of maps that start alike
    refused = {"beta": -1, "distance": "euclid", "projector": "cubic"}


class TestFeatureByCosine(TestFeature):
    options = {"distance": "cosine"}


class TestFeatureBySmoothL1(TestFeature):
    options = {"distance": "smooth_l1", "projector": "mlp"}
    changing = {"beta": 0.0, "distance": "mae", "projector": "orthogonal"}
    untried = ("orthogonal_map", "orthogonal_projection")  # of other projectors


class TestFeatureByAnOrthogonalMap(TestFeature):
    options = {"projector": "orthogonal"}
    changing = {"beta": 0.0, "distance": "mae", "projector": "linear"}
    untried = ("orthogonal_map", "orthogonal_projection")  # of maps that start alike


class TestNormDirection(ObjectiveTests):
    objective = "norm_direction"
    feature_shapes = ((2, 2), (2, 2))
    changing = {"beta": 3.0, "projector": "mlp"}
    untried = ("orthogonal_map",)  # of maps that start alike
    refused = {"beta": -1, "projector": "cubic", "orthogonal_map": "none"}


class TestUndistilled(ObjectiveTests):
    objective = "undistilled"
