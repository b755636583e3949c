"""The lengths that texts are padded to: from a text's own number of tokens alone, so that it looks
the same to a model in any batch; few of them, so that batches fill up.

    growing_steps     multiples of 8 up to 32 tokens, of 16 up to 128, beyond of an eighth of the
                      power of two below: 144 ... 256, 288 ... 512, 576 ...
    multiples_of_16   what releases before this option had

Counted for MiniLM's and SmolLM2's tokens (`benchmarks/RESULTS.md`): short texts (SST-2) have 1.27
times the tokens with padding in place of 1.61; long ones (Dolly, up to 2,048 tokens) come in 31 %
fewer batches, with 1.06 times the tokens in place of 1.04. Steps of a quarter make batches a sixth
fewer still, with 1.10 times the tokens.
"""

import numpy as np

from ....cache_schemas.keys import IntArray
from .options import Padding


def padded_lengths(lengths: IntArray, most: int, padding: Padding) -> IntArray:
    """What texts of so many tokens [N] are padded to, at most what a model takes."""
    lengths = np.maximum(lengths, 1)
    steps = np.full_like(lengths, 16)
    if padding == "growing_steps":
        exponents = np.frexp(lengths - 1)[1]  # 2 ** (exponent - 1) is the power of two below
        steps = np.where(lengths <= 32, 8, 2 ** np.maximum(exponents - 4, 4))
    padded: IntArray = -(-lengths // steps) * steps
    return np.minimum(padded, min(most, int(padded.max(initial=1))))  # `most` may be any number
