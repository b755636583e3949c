"""The contract of objectives for those of `objectives/contrast.py`."""

from armada.testing import ObjectiveTests


class TestInfoNCE(ObjectiveTests):
    objective = "infonce"
    options = {"similarity_temperature": 0.5}
    changing = {
        **{"beta": 3.0, "similarity_temperature": 0.05, "negatives": 3, "mask_same_label": True},
        **{"projector": "orthogonal", "symmetric": True},
    }
    untried = ("orthogonal_map",)  # of maps that start alike
    refused = {
        **{"beta": -1, "similarity_temperature": 0, "negatives": -1, "mask_same_label": "some"},
        **{"projector": "cubic", "symmetric": "both"},
    }


class TestInfoNCEWithNegatives(TestInfoNCE):
    options = {"similarity_temperature": 0.5, "negatives": 3, "projector": "mlp"}
    changing = {**TestInfoNCE.changing, "negatives": 2}


class TestCRD(ObjectiveTests):
    objective = "crd"
    options = {"similarity_temperature": 0.5, "negatives": 3}
    changing = {
        **{"beta": 3.0, "similarity_temperature": 0.05, "negatives": 0, "mask_same_label": True},
        "embedding_size": 5,
    }
    refused = {
        **{"beta": -1, "similarity_temperature": 0, "negatives": -1, "mask_same_label": "some"},
        "embedding_size": 0,
    }


class TestWCoRD(ObjectiveTests):
    objective = "wcord"
    options = {"negatives": 3, "transport_iterations": 5}
    changing = {
        **{"beta": 3.0, "negatives": 0, "mask_same_label": True, "embedding_size": 5},
        **{"global_weight": 0.0, "local_weight": 3.0},
        **{"transport_epsilon": 1.0, "transport_iterations": 1},
    }
    refused = {
        **{"beta": -1, "negatives": -1, "mask_same_label": "some", "embedding_size": 0},
        **{"global_weight": -1, "local_weight": -1},
        **{"transport_epsilon": 0, "transport_iterations": 0},
    }
