"""The batches of a student's epochs, as a loader asks for them and as a replay reads ahead."""

from collections.abc import Iterator
from itertools import chain, pairwise

from torch.utils.data import Sampler

from .batches import DistillDataset
from .order import GROUPED_BATCHES, Places, grouped_by_length


class EpochBatches(Sampler[list[int]]):
    """A student's batches, the last of an epoch maybe smaller. `set_epoch` chooses the epoch."""

    def __init__(
        self, dataset: DistillDataset, batch_size: int, seed: int, group_by_length: bool = False
    ) -> None:
        self._dataset, self._seed, self._group = dataset, seed, group_by_length
        self.batch_size = batch_size
        self.drop_last = False
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.of(self._epoch, read_ahead=self._dataset.streams_to_steps)
        for places, following in pairwise(chain(batches, [None])):
            assert places is not None
            self._dataset.expect(following)
            yield places.tolist()

    def of(self, epoch: int, read_ahead: bool = True) -> Iterator[Places]:
        """The batches of an epoch; `read_ahead` is for who reads their features."""
        batches = self._dataset.batches(self.batch_size, self._seed, epoch, read_ahead=read_ahead)
        if not self._group:
            return batches
        # Of what is streamed, no more than is read ahead.
        most = GROUPED_BATCHES * self.batch_size
        rows = min(self._dataset.window_rows or most, most)
        group = max(1, rows // self.batch_size)
        return grouped_by_length(batches, self._dataset.lengths, self._seed, epoch, group)
