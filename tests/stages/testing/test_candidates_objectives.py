"""The contract of objectives for those of `objectives/candidates.py`."""

from armada.testing import CandidateObjectiveTests, ObjectiveTests


class TestContrastive(CandidateObjectiveTests):
    objective = "contrastive"
    changing = {"similarity_temperature": 0.5, "symmetric": True}
    refused = {"similarity_temperature": 0}


class TestContrastiveBothWays(TestContrastive):
    options = {"symmetric": True}
    changing = {"similarity_temperature": 0.5, "symmetric": False}


class TestGuidedContrastive(TestContrastive):
    objective = "guided_contrastive"
    options = {"margin": -0.2}
    changing = {**TestContrastive.changing, "margin": 0.3}
    refused = {"similarity_temperature": 0, "margin": 3}


class TestCosent(CandidateObjectiveTests):
    objective = "cosent"
    candidates = 2
    changing = {"similarity_temperature": 0.5}
    refused = {"similarity_temperature": 0}


class TestMarginMSE(CandidateObjectiveTests):
    objective = "margin_mse"
    changing = {"beta": 0.5, "score_scale": 0.1}
    refused = {"beta": -1, "score_scale": 0}


class TestMarginMSEOfScores(TestMarginMSE):
    feature_shapes = ((1,),)


class TestListwiseKL(CandidateObjectiveTests):
    objective = "listwise_kl"
    changing = {"beta": 0.5, "similarity_temperature": 0.5, "teacher_temperature": 0.5}
    refused = {"beta": -1, "similarity_temperature": 0, "teacher_temperature": 0}


class TestListwiseKLOfScores(TestListwiseKL):
    feature_shapes = ((1,),)


class TestSimilarityBank(ObjectiveTests):
    objective = "similarity_bank"
    changing = {
        **{"beta": 0.5, "similarity_temperature": 0.5, "teacher_temperature": 0.5},
        **{"negatives": 5, "mask_same_label": True, "projector": "mlp"},
    }
    untried = ("orthogonal_map",)  # of an orthogonal projector
    refused = {"beta": -1, "similarity_temperature": 0, "negatives": -1, "projector": "cubic"}
