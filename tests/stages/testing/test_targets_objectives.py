"""The contract of objectives for those of `objectives/targets.py`."""

from armada.testing import ObjectiveTests


class TestTAID(ObjectiveTests):
    objective = "taid"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0, "taid_end": 0.5}
    untried = ("taid_start", "taid_step", "taid_momentum")  # of training, and here is evaluation
    refused = {"alpha": -0.1, "temperature": 0, "taid_start": 2, "taid_end": 0, "taid_momentum": 1}


class TestFirst(ObjectiveTests):
    objective = "first"
    options = {"kept_classes": 2}
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "kept_classes": 1, "calibration_temperature": 2.0, "smoothing": 0.1}
    refused = {"alpha": -0.1, "kept_classes": 0, "calibration_temperature": 0, "smoothing": 1}


class TestSmoothedLabels(ObjectiveTests):
    objective = "smoothed_labels"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": 0}


class TestPESF(ObjectiveTests):
    objective = "pesf"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    untried = ("adapter_hidden_size",)  # of an adapter that begins as nothing
    refused = {"alpha": -0.1, "temperature": 0, "adapter_hidden_size": 0}


class TestFusedLabels(ObjectiveTests):
    objective = "fused_labels"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    untried = ("strictness",)  # of a gate that begins at alpha
    refused = {"alpha": -0.1, "temperature": 0, "strictness": 0}
