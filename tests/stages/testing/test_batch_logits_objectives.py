"""The contract of objectives for those of `objectives/batch_logits.py`."""

from armada.testing import ObjectiveTests


class TestSinkhorn(ObjectiveTests):
    objective = "sinkhorn"
    feature_shapes = ((3,),)
    changing = {
        **{"alpha": 0.9, "temperature": 2.0, "kl_weight": 0.0, "sinkhorn_weight": 0.0},
        **{"sinkhorn_epsilon": 1.0, "sinkhorn_iterations": 1},
    }
    refused = {
        **{"alpha": -0.1, "temperature": 0, "kl_weight": -1, "sinkhorn_weight": -1},
        **{"sinkhorn_epsilon": 0, "sinkhorn_iterations": 0},
    }


class TestLumi(ObjectiveTests):
    objective = "lumi"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": 0}
