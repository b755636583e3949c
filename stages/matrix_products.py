"""The precision of float32 matrix products, which both stages have as an option."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

MatmulPrecision = Literal["highest", "high", "medium"]
"""As torch names them."""


@contextmanager
def matrix_products(precision: MatmulPrecision) -> Iterator[None]:
    """Sets the precision of this process's float32 matrix products, and what it was at the end."""
    import torch  # not above: options are read without it

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
