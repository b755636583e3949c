"""The contract of objectives for those of `objectives/logits.py`."""

from dataclasses import replace

import pytest
import torch
from armada.cache_schemas.errors import InputError
from armada.stages.distill.objectives.base import TASK_PART
from armada.testing import ObjectiveTests


class TestKD(ObjectiveTests):
    objective = "kd"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": "warm"}


class TestLearnedTemperature(TestKD):
    options = {"temperature": "learned"}
    tasks = ("classification", "multilabel")  # numbers of a regression have no temperature


class TestLogitMSE(ObjectiveTests):
    objective = "logit_mse"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "centred": True}
    refused = {"alpha": -0.1, "centred": "perhaps"}


class TestCentred(TestLogitMSE):
    options = {"centred": True}
    changing = {"alpha": 0.9, "centred": False}


class TestDKD(ObjectiveTests):
    objective = "dkd"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0, "target_weight": 0.0, "nontarget_weight": 1.0}
    refused = {"alpha": -0.1, "temperature": 0, "target_weight": -1, "nontarget_weight": -1}


class TestDKDOfTwoClasses(TestDKD):
    rows = 7
    num_labels = 2
    feature_shapes = ((2,),)
    changing = {"alpha": 0.9, "temperature": 2.0, "target_weight": 0.5}
    untried = ("nontarget_weight",)  # of one class that is no target: always 0


class TestDualHead(ObjectiveTests):
    objective = "dual_head"
    feature_shapes = ((3,),)
    changing = {"alpha": 0.9, "temperature": 2.0}
    refused = {"alpha": -0.1, "temperature": 0}

    def test_the_part_of_the_task(self) -> None:
        """For an optimizer with two momenta: what labels alone would have."""
        sizes = self._sizes(regression=False)
        objective, batch = self._made(sizes, alpha=0.9), self._batch(sizes)
        objective.splits = True
        terms = objective.of_batch(*self._of_sources(objective, batch))
        torch.testing.assert_close(terms[TASK_PART], 0.1 * terms["task"])

    def test_two_classes_are_refused(self) -> None:
        """Their standardised logits would have no slope, so that nothing would be learned."""
        with pytest.raises(InputError, match="two classes are nothing but their order"):
            self._made(replace(self._sizes(regression=False), num_labels=2, feature_shape=(2,)))
