"""The contract of objectives for those of `objectives/divergences.py`."""

from armada.testing import ObjectiveTests


class SoftenedTests(ObjectiveTests):
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": 0}


class TestReverseKL(SoftenedTests):
    objective = "reverse_kl"


class TestJSD(SoftenedTests):
    objective = "jsd"
    changing = {**SoftenedTests.changing, "jsd_beta": 0.9}
    refused = {**SoftenedTests.refused, "jsd_beta": 1}


class TestSkewKL(SoftenedTests):
    objective = "skew_kl"
    changing = {**SoftenedTests.changing, "skew": 0.0}
    refused = {**SoftenedTests.refused, "skew": 1}


class TestSkewReverseKL(TestSkewKL):
    objective = "skew_reverse_kl"


class TestWithoutSkew(TestSkewKL):
    objective = "skew_reverse_kl"
    options = {"skew": 0.0}
    changing = {**SoftenedTests.changing, "skew": 0.5}


class TestTVD(SoftenedTests):
    objective = "tvd"


class TestBalancedKL(SoftenedTests):
    objective = "balanced_kl"
    changing = {**SoftenedTests.changing, "balance": 1.0}
    refused = {**SoftenedTests.refused, "balance": -1}
