"""Options of objectives that compare the states of single tokens."""

from .layers import MappedLayersOptions, ProjectedLayersOptions


class TokenStatesOptions(ProjectedLayersOptions):
    """Options of the objective token_states."""


class TokenRelationsOptions(MappedLayersOptions):
    """Options of the objective token_relations."""
