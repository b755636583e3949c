"""The contract of objectives for those of `objectives/token_states.py`."""

from armada.testing import ObjectiveTests


class TestTokenStates(ObjectiveTests):
    objective = "token_states"
    feature_shapes = ((4,), (2, 3))
    changing = {"map": "last", "distance": "cosine", "normalize": True, "beta": 3.0}
    refused = {"map": (), "beta": -1, "distance": "far"}


class TestLearnedMapOfTokens(TestTokenStates):
    options = {"map": "learned", "distance": "mae"}
    changing = TestTokenStates.changing | {"distance": "mse"}


class TestTokenRelations(ObjectiveTests):
    objective = "token_relations"
    feature_shapes = ((4,), (3,))
    layer_dims = (3, 6, 5, 4, 2)
    least_tokens = 2
    changing = {"map": "last", "beta": 3.0}
    refused = {"map": (), "beta": -1}


class TestLearnedMapOfRelations(TestTokenRelations):
    layer_dims = (3, 6, 6, 6)
    options = {"map": "learned"}
