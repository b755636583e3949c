"""Rows of mapped memory by `torch.index_select`, whatever has mapped them."""

import torch

from .reader import Batch, Reader
from .source import RowNumbers


class Selecting(Reader):
    """To be put before a reader that maps; its own part is to make `tensor` [rows, dim]."""

    tensor: torch.Tensor

    def gather(self, rows: RowNumbers) -> Batch:
        return torch.index_select(self.tensor, 0, torch.from_numpy(rows))

    def span(self, start: int, stop: int) -> Batch:
        return self.tensor[start:stop].clone()

    def close(self) -> None:
        super().close()
        del self.tensor
