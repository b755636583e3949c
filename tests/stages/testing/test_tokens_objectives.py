"""The contract of objectives for those of `objectives/tokens.py`."""

from armada.testing import TokenObjectiveTests


class TestTokens(TokenObjectiveTests):
    objective = "tokens"
    changing = {"alpha": 0.9, "token_temperature": 2.0, "divergence": "reverse_kl"}
    untried = ("tail", "cross_tokenizer", "jsd_beta", "skew")  # of other answers and divergences
    refused = {"alpha": 1.5, "token_temperature": 0, "divergence": "kl", "skew": 1, "tail": "cut"}


class TestTokensByTheirMixture(TestTokens):
    options = {"divergence": "jsd"}
    changing = {"alpha": 0.9, "token_temperature": 2.0, "divergence": "skew_kl", "jsd_beta": 0.9}
    untried = ("tail", "cross_tokenizer", "skew")
