"""The contract of objectives for those of `objectives/layers.py`."""

from armada.testing import ObjectiveTests


class TestHiddenLayers(ObjectiveTests):
    objective = "hidden_layers"
    feature_shapes = ((4,), (2, 3))
    changing = {
        **{"map": "last", "distance": "cosine", "normalize": True, "beta": 3.0},
        "layer_pooling": "cls",
    }
    refused = {"map": (), "beta": -1, "distance": "far", "layer_pooling": "pooler"}


class TestLearnedMap(TestHiddenLayers):
    options = {"map": "learned"}


class TestAList(TestHiddenLayers):
    options = {"map": (0, -2), "distance": "cosine"}
    changing = TestHiddenLayers.changing | {"distance": "mae"}
    untried = ("normalize",)  # cosine compares directions alone
    changing.pop("normalize")
    layer_dims = (3, 6, 5, 4)


class TestAHint(TestHiddenLayers):
    """One layer."""

    feature_shapes = ((4,),)
    changing = TestHiddenLayers.changing | {"map": (1,)}
