"""Options of the objectives, a file a family, and other keys of an objective.

Nothing here imports torch: a job is parsed, and refused, before a run loads anything heavy.
"""

from .armada import ArmadaOptions, Manifold, OrthogonalMap
from .attention import AttentionRelationsOptions
from .base import SOURCE, AlphaOptions, BetaOptions, MayMove, ObjectiveOptions, WeightSchedule
from .features import Distance, FeatureOptions
from .layers import HiddenLayersOptions
from .logits import KDOptions
from .relations import RKDOptions
from .token_states import TokenRelationsOptions, TokenStatesOptions
from .tokens import Tail, TokensOptions

__all__ = [
    "SOURCE",
    "AlphaOptions",
    "ArmadaOptions",
    "AttentionRelationsOptions",
    "BetaOptions",
    "Distance",
    "FeatureOptions",
    "HiddenLayersOptions",
    "KDOptions",
    "Manifold",
    "MayMove",
    "ObjectiveOptions",
    "OrthogonalMap",
    "RKDOptions",
    "Tail",
    "TokenRelationsOptions",
    "TokenStatesOptions",
    "TokensOptions",
    "WeightSchedule",
]
