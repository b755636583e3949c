"""Objectives that compare the states of single tokens, which teacher and student read alike."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..losses.token_states import token_relations_loss, token_states_loss
from .base import StudentSide
from .layers import MappedLayersObjective, ProjectedLayersObjective
from .options import TokenRelationsOptions, TokenStatesOptions

_READS = replace(MappedLayersObjective.reads, axis="tokens")


class TokenStatesObjective(ProjectedLayersObjective):
    """States of each token in layers of the student, projected onto the teacher's.

    Formula: task + beta · mean over features i and tokens of distance(projection_i(h_map(i)), t_i)
    Source: Jiao et al., TinyBERT, arXiv 1909.10351, equation 8, on cached states.
    """

    Options = TokenStatesOptions
    options: TokenStatesOptions
    reads = _READS

    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports tokens."""
        assert side.mask_BT is not None
        losses = [
            token_states_loss(
                projection_BTH,
                feature_BTH.flatten(start_dim=2),
                side.mask_BT,
                self.options.distance,
                self.options.normalize,
            )
            for projection_BTH, feature_BTH in zip(
                self.projected(self.states(side)), features, strict=True
            )
        ]
        loss = torch.stack(losses).mean()
        return loss, {"tokens": loss}


class TokenRelationsObjective(MappedLayersObjective):
    """Cosines between the tokens of a text in layers of the student, as the teacher has them.

    Formula: task + beta · mean over features, texts and pairs of tokens of (cos(h_j, h_k) -
    cos(t_j, t_k))²
    Source: relations inside one example, as in Zhang et al., TRG, arXiv 2306.12442.

    Owns no projection: widths need not be equal. Holds the T·T cosines of each text.
    """

    Options = TokenRelationsOptions
    options: TokenRelationsOptions
    reads = _READS

    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports relations."""
        assert side.mask_BT is not None
        losses = [
            token_relations_loss(states_BTD, feature_BTH.flatten(start_dim=2), side.mask_BT)
            for states_BTD, feature_BTH in zip(
                self.mapped(self.states(side)), features, strict=True
            )
        ]
        loss = torch.stack(losses).mean()
        return loss, {"relations": loss}
