"""In which numbers a teacher computes, in which its answers are kept, and to which bit they repeat.

'auto' is resolved before the spec is made, so a fingerprint names the type that was used.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch
from pydantic import Field

from ....cache_schemas.features import StoredDtype
from .base import TeacherOptions

ROW_GROUP = 4
"""Rows of a CPU batch come in such groups. Measured with torch 2.15 (MKL, AVX-512, float32, 1 to 64
threads): the rows of a matrix product that are left over beyond a multiple of 4 may differ in the
last bits from what they are in a larger batch; with none left over no row ever differed."""

ComputeDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Precision:
    """The types of one teacher, nothing left to choose."""

    compute: ComputeDtype
    stored: StoredDtype

    def settings(self) -> dict[str, str]:
        """What enters the spec in place of 'auto'."""
        return {"dtype": self.compute, "store_dtype": self.stored}

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the model's weights and activations."""
        dtype: torch.dtype = getattr(torch, self.compute)
        return dtype

    def store(self, values: torch.Tensor) -> npt.NDArray[Any]:
        """`values` as the array that is kept. A number too large for float16 becomes infinite."""
        dtype = torch.float16 if self.stored == "float16" else torch.float32
        return values.to(dtype).cpu().numpy()


def in_row_groups(rows_BT: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`rows_BT` on the device; on a CPU the last row is repeated until B is a multiple of 4.

    So that heads and projections, which see one row a text, give a text the same bits in a batch
    of any size. A GPU chooses its kernels by size anyway, and is spared the rows."""
    if device.type == "cpu":
        lacking = -len(rows_BT) % ROW_GROUP
        rows_BT = torch.cat([rows_BT, rows_BT[-1:].expand(lacking, -1)])
    return rows_BT.to(device)


class PrecisionOptions(TeacherOptions):
    """Options of teachers that compute with torch."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="type the model computes in; auto is float32"
    )
    store_dtype: Literal["auto", "float32", "float16"] = Field(
        default="auto",
        description="type of the stored numbers; auto is float16 if the model computes in half "
        "precision, else float32",
    )

    def precision(self) -> Precision:
        """The types with 'auto' resolved."""
        compute: ComputeDtype = "float32" if self.dtype == "auto" else self.dtype
        if self.store_dtype != "auto":
            return Precision(compute, self.store_dtype)
        return Precision(compute, "float32" if compute == "float32" else "float16")
