"""armada's own objectives promise what it asks of others'."""

import armada.testing
from armada.stages.distill.objectives import OBJECTIVES
from armada.testing import ObjectiveTests, TokenObjectiveTests


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


class TestKD(ObjectiveTests):
    objective = "kd"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": "warm"}


class TestLearnedTemperature(TestKD):
    options = {"temperature": "learned"}


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


class TestTokens(TokenObjectiveTests):
    objective = "tokens"
    changing = {"alpha": 0.9, "token_temperature": 2.0, "divergence": "reverse_kl"}
    untried = ("tail", "cross_tokenizer", "jsd_beta", "skew")  # of other answers and divergences
    refused = {"alpha": 1.5, "token_temperature": 0, "divergence": "kl", "skew": 1, "tail": "cut"}


class TestTokensByTheirMixture(TestTokens):
    options = {"divergence": "jsd"}
    changing = {"alpha": 0.9, "token_temperature": 2.0, "divergence": "skew_kl", "jsd_beta": 0.9}
    untried = ("tail", "cross_tokenizer", "skew")


def test_none_is_left_out() -> None:
    tested = {each.objective for each in globals().values() if _is_a_kit(each)}
    assert tested == set(OBJECTIVES.built_in)


def _is_a_kit(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, ObjectiveTests)
        and value.__module__ != (armada.testing.ObjectiveTests.__module__)
    )
