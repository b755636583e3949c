"""The contract of objectives for those of `objectives/attention.py`."""

from armada.testing import ObjectiveTests


class TestAttentionRelations(ObjectiveTests):
    objective = "attention_relations"
    options = {"relation_heads": 2}
    feature_shapes = ((3, 4),)
    attention_dims = (6, 6, 6)
    changing = {"beta": 3.0, "student_layer": 1, "relation_heads": 1}
    refused = {"beta": -1, "relation_heads": 0}
    least_tokens = 2  # one token relates to itself alone
