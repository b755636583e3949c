"""Chunked losses of other packages. Both take the teacher's hidden states and lm_head, not a cache:
their time has one more matrix product in it, and they know no sparse answers.

    pip install --no-deps trl==1.16.0 liger-kernel==0.8.5
"""

import importlib.util
from collections.abc import Callable

from torch import Tensor

from fused_losses.material import Material
from fused_losses.ways import Way


def trl(m: Material) -> Tensor:
    """KL, tiled over tokens and words."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student = (m.hidden_PH, m.weight_VH, None)
    others = (0.0, 1.0, 1.0, None, 1.0, None)  # forward KL, no temperature, scale or softcap
    each, _ = ChunkedDivergenceFunction.apply(*student, m.teacher_PH, m.teacher_VH, None, *others)
    return each.mean()


def liger(m: Material) -> Tensor:
    """KL, in chunks of 1024 tokens; its graph of a chunk is made by `torch.func`."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=m.hidden_PH.is_cuda
    )
    result: Tensor = loss(m.hidden_PH, m.weight_VH, m.teacher_PH, m.teacher_VH, m.labels_P)
    return result


_PEERS: dict[str, tuple[str, Callable[[Material], Tensor]]] = {
    "TRL, dense": ("trl", trl),
    "Liger, dense": ("liger_kernel", liger),
}

PEERS = tuple(Way(name, loss, "plain, dense") for name, (_, loss) in _PEERS.items())


def installed(name: str) -> bool:
    """Whether the package of a way is here; ours and plain torch always are."""
    return name not in _PEERS or importlib.util.find_spec(_PEERS[name][0]) is not None
