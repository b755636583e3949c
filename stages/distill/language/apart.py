"""Whether texts that share a row can be kept from seeing each other: tried out, not looked up.

Positions that begin again tell a model where the next text begins. Not all families heed them (OPT,
BLOOM and Mamba do not, seen with transformers 5.23), and none says so: a text would silently see
those before it.
"""

import torch

from ....cache_schemas.errors import JobError
from .settings import Packing
from .student import LanguageStudent

TOKENS = 4
"""Of each of the two texts of the trial."""

TOLERANCE = 1e-3
"""Of the largest hidden number: rounding, in other kernels, and no more."""


def check_packing(packing: Packing, student: LanguageStudent) -> None:
    """Refuse `apart` for a student that lets texts of one row see each other. Raises JobError."""
    if packing == "apart" and not keeps_apart(student):
        raise JobError(
            f"packing apart: a {type(student.causal).__name__} lets the texts of a row see each "
            "other; use packing none, or joined"
        )


@torch.no_grad()
def keeps_apart(student: LanguageStudent) -> bool:
    """Whether two texts in one row have the hidden states that they have in a row each."""
    was_training, device = student.training, student.head_weights[0].device
    student.eval()
    ids = torch.arange(2 * TOKENS, device=device) % len(student.head_weights[0])
    texts_BT = ids.view(2, TOKENS)
    expected = student(texts_BT, attention_mask=torch.ones_like(texts_BT))
    positions = torch.arange(TOKENS, device=device).repeat(2)
    found = student(ids[None], position_ids=positions[None]).view_as(expected)
    student.train(was_training)
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return bool(error <= TOLERANCE)
