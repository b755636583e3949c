"""The training objectives, by name. Each is imported only when a job chooses it.

A family of objectives is a file of the same name in three places: formulas in `../losses`, options
in `options`, and here the classes that join both to what is trained beside a student.
"""

from collections.abc import Mapping

from ...plugins import Registry

_FAMILIES: Mapping[str, Mapping[str, str]] = {
    "armada": {"armada": "Armada"},
    "attention": {"attention_relations": "AttentionRelations"},
    "logits": {"kd": "KD", "logit_mse": "LogitMSE", "dkd": "DKD", "dual_head": "DualHead"},
    "divergences": {
        "reverse_kl": "ReverseKL",
        "jsd": "JSD",
        "skew_kl": "SkewKL",
        "skew_reverse_kl": "SkewReverseKL",
        "tvd": "TVD",
        "balanced_kl": "BalancedKL",
    },
    "batch_logits": {"sinkhorn": "Sinkhorn", "lumi": "Lumi"},
    "targets": {
        "taid": "TAID",
        "first": "First",
        "smoothed_labels": "SmoothedLabels",
        "pesf": "PESF",
        "fused_labels": "FusedLabels",
    },
    "exits": {"ofa": "OFA"},
    "layers": {"hidden_layers": "HiddenLayers"},
    "teachers": {"multi_kd": "MultiKD"},
    "token_states": {"token_states": "TokenStates", "token_relations": "TokenRelations"},
    "features": {"feature": "Feature", "norm_direction": "NormDirection"},
    "relations": {
        "rkd": "RKD",
        "similarity_preserving": "SimilarityPreserving",
        "in_batch": "InBatch",
        "cka": "CKA",
        "mmd": "MMD",
        "prototypes": "Prototypes",
    },
    "contrast": {"infonce": "InfoNCE", "crd": "CRD", "wcord": "WCoRD"},
    "tokens": {"tokens": "Tokens"},
    "candidates": {
        "contrastive": "Contrastive",
        "guided_contrastive": "GuidedContrastive",
        "cosent": "Cosent",
        "margin_mse": "MarginMSE",
        "listwise_kl": "ListwiseKL",
        "similarity_bank": "SimilarityBank",
    },
    "preferences": {"dpo": "DPO", "plad": "PLaD"},
}
"""File -> name -> beginning of the names of its class, and of that of its options."""


def _references(folder: str, suffix: str) -> dict[str, str]:
    return {
        name: f"{folder}.{file}:{stem}{suffix}"
        for file, family in _FAMILIES.items()
        for name, stem in family.items()
    }


OBJECTIVES = Registry(
    group="armada.objectives",
    kind="objective",
    built_in={
        **_references(".distill.objectives", "Objective"),
        "undistilled": ".distill.objectives.undistilled:UndistilledObjective",
    },
    built_in_options={
        **_references(".distill.objectives.options", "Options"),
        "undistilled": ".distill.objectives.options:ObjectiveOptions",
    },
)

WITHOUT_TEACHER = frozenset({"undistilled", "plad", "contrastive", "cosent"})
"""Built-in objectives that read nothing of a cache, so that a job of these alone needs none."""
