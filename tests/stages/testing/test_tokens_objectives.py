"""The contract of objectives for those of `objectives/tokens.py`."""

from armada.testing import TokenObjectiveTests


class TestTokens(TokenObjectiveTests):
    objective = "tokens"
    changing = {
        **{"alpha": 0.9, "token_temperature": 2.0, "divergence": "reverse_kl"},
        "token_weights": "entropy",
    }
    untried = (  # of other answers and divergences
        *("tail", "token_temperatures", "cross_tokenizer", "jsd_beta", "skew"),
        *("taid_start", "taid_end"),
        *("target_weight", "nontarget_weight", "atkd_easy_weight", "atkd_uncertainty"),
        *("evolution_label_share", "evolution_prior_share", "evolution_difficulty"),
    )
    refused = {"alpha": 1.5, "token_temperature": 0, "divergence": "kl", "skew": 1, "tail": "cut"}


class TestTokensByTheirMixture(TestTokens):
    options = {"divergence": "jsd"}
    changing = {**TestTokens.changing, "divergence": "skew_kl", "jsd_beta": 0.9}
    untried = tuple(name for name in TestTokens.untried if name != "jsd_beta")


class TestTokensByTarget(TestTokens):
    options = {"divergence": "dkd"}
    changing = {**TestTokens.changing, "target_weight": 0.0, "nontarget_weight": 1.0}
    untried = tuple(name for name in TestTokens.untried if "target_weight" not in name)


class TestTokensByDifficulty(TestTokens):
    options = {"divergence": "atkd"}
    changing = {**TestTokens.changing, "atkd_easy_weight": 0.4, "atkd_uncertainty": 0.99}
    untried = tuple(name for name in TestTokens.untried if "atkd" not in name)


class TestTokensBySelfEvolution(TestTokens):
    options = {"divergence": "self_evolution"}
    changing = {
        **TestTokens.changing,
        **{
            "evolution_label_share": 0.1,
            "evolution_prior_share": 0.1,
            "evolution_difficulty": 99.0,
        },
    }
    untried = tuple(name for name in TestTokens.untried if "evolution" not in name)
