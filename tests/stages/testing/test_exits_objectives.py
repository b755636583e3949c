"""The contract of objectives for those of `objectives/exits.py`."""

from armada.testing import ObjectiveTests


class TestOFA(ObjectiveTests):
    objective = "ofa"
    feature_shapes = ((3,),)
    changing = {"beta": 3.0, "layers": (2,), "enhancement": 2.0, "layer_pooling": "cls"}
    refused = {"beta": -1, "layers": (), "enhancement": -1, "layer_pooling": "pooler"}
