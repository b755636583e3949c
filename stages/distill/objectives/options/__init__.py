"""Options of the objectives, a file a family, and other keys of an objective.

Nothing here imports torch: a job is parsed, and refused, before a run loads anything heavy.
"""

from .armada import ArmadaOptions, Manifold, OrthogonalMap
from .attention import AttentionRelationsOptions
from .base import SOURCE, AlphaOptions, BetaOptions, MayMove, ObjectiveOptions, WeightSchedule
from .batch_logits import LumiOptions, SinkhornOptions
from .candidates import (
    ContrastiveOptions,
    CosentOptions,
    GuidedContrastiveOptions,
    ListwiseKLOptions,
    MarginMSEOptions,
    ScoresOptions,
    SimilarityBankOptions,
)
from .contrast import ContrastOptions, CRDOptions, InfoNCEOptions, WCoRDOptions
from .divergences import (
    BalancedKLOptions,
    JSDOptions,
    ReverseKLOptions,
    SkewKLOptions,
    SkewReverseKLOptions,
    SoftenedOptions,
    TVDOptions,
)
from .exits import OFAOptions
from .features import Distance, FeatureOptions, NormDirectionOptions, ProjectorOptions
from .layers import HiddenLayersOptions
from .logits import DKDOptions, DualHeadOptions, KDOptions, LogitMSEOptions
from .preferences import DPOOptions, PLaDOptions, PreferenceLoss
from .relations import (
    CKAOptions,
    InBatchOptions,
    Kernel,
    MMDOptions,
    PrototypesOptions,
    RKDOptions,
    SimilarityOptions,
    SimilarityPreservingOptions,
)
from .targets import (
    FirstOptions,
    FusedLabelsOptions,
    PESFOptions,
    SmoothedLabelsOptions,
    TAIDOptions,
)
from .teachers import Fusion, MultiKDOptions
from .token_states import TokenRelationsOptions, TokenStatesOptions
from .tokens import Tail, TokensOptions

__all__ = [
    "SOURCE",
    "AlphaOptions",
    "ArmadaOptions",
    "AttentionRelationsOptions",
    "BalancedKLOptions",
    "BetaOptions",
    "CKAOptions",
    "CRDOptions",
    "ContrastOptions",
    "ContrastiveOptions",
    "CosentOptions",
    "DKDOptions",
    "DPOOptions",
    "Distance",
    "DualHeadOptions",
    "FeatureOptions",
    "FirstOptions",
    "FusedLabelsOptions",
    "Fusion",
    "GuidedContrastiveOptions",
    "HiddenLayersOptions",
    "InBatchOptions",
    "InfoNCEOptions",
    "JSDOptions",
    "KDOptions",
    "Kernel",
    "ListwiseKLOptions",
    "LogitMSEOptions",
    "LumiOptions",
    "MMDOptions",
    "Manifold",
    "MarginMSEOptions",
    "MayMove",
    "MultiKDOptions",
    "NormDirectionOptions",
    "OFAOptions",
    "ObjectiveOptions",
    "OrthogonalMap",
    "PESFOptions",
    "PLaDOptions",
    "PreferenceLoss",
    "ProjectorOptions",
    "PrototypesOptions",
    "RKDOptions",
    "ReverseKLOptions",
    "ScoresOptions",
    "SimilarityBankOptions",
    "SimilarityOptions",
    "SimilarityPreservingOptions",
    "SinkhornOptions",
    "SkewKLOptions",
    "SkewReverseKLOptions",
    "SmoothedLabelsOptions",
    "SoftenedOptions",
    "TAIDOptions",
    "TVDOptions",
    "Tail",
    "TokenRelationsOptions",
    "TokenStatesOptions",
    "TokensOptions",
    "WCoRDOptions",
    "WeightSchedule",
]
