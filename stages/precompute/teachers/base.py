"""The contract of a teacher: settings in, a spec before anything heavy, then batches of features.

A teacher is made in two steps. Its constructor reads configuration files and digests weights, and
knows its `spec` afterwards; so a job with the wrong settings is refused before a model loads.
`load` then builds the model: frozen, in eval mode, on its device. `encode` computes a batch.

A feature depends on the example alone: not on the batch, its order or its size. Randomness comes
from `Example.key` and the teacher's seed (`example_seed`), never from a shared generator; padding
comes from the example's own length (`buckets`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.codings import Fidelity
from ....cache_schemas.errors import RunError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import KEY_BYTES, IntArray, KeyArray
from ....cache_schemas.layout import DEFAULT_ROWS_PER_SHARD
from ....cache_schemas.manifest import RequestFigures, RunRecord
from ....cache_schemas.teachers import SettingValue, TeacherSpec
from ...matrix_products import matrix_products
from ...memory import out_of_memory_as
from ...tokenizing.unknown import Unknown
from .options import CheckpointOptions as CheckpointOptions  # for teachers of other packages
from .options import Precision as Precision
from .options import PrecisionOptions as PrecisionOptions
from .options import TeacherOptions as TeacherOptions
from .options import TextOptions as TextOptions

if TYPE_CHECKING:
    from ...store.writing.replies import KeptReplies


@dataclass(frozen=True, slots=True)
class Example:
    """One example: its key and its text segments, in order."""

    key: bytes
    segments: tuple[str, ...]


class Examples(Sequence[Example]):
    """N examples, each made when it is asked for: once a text is tokenized, few teachers ask."""

    def __init__(
        self, keys: KeyArray, segments: Sequence[tuple[str, ...]], rows: IntArray | None = None
    ) -> None:
        """Keys [M, 16] and text segments of M examples, of which these are `rows` [N], or all."""
        self._keys, self._segments = keys, segments
        self._rows = np.arange(len(keys)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "Examples": ...

    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return Examples(self._keys, self._segments, self._rows[index])
        row = int(self._rows[index])
        return Example(self._keys[row].tobytes(), self._segments[row])

    def __iter__(self) -> Iterator[Example]:
        keys = self._keys[self._rows].view(f"V{KEY_BYTES}")[:, 0].tolist()
        return map(Example, keys, map(self._segments.__getitem__, self._rows.tolist()))

    def take(self, rows: IntArray) -> "Examples":
        """Some of the examples, in the order of `rows` [B]."""
        return Examples(self._keys, self._segments, self._rows[rows])


@dataclass(frozen=True, slots=True)
class Answers:
    """Outputs for B examples, in their order.

    features: name -> array [B, *shape], or, of a feature along an axis, one array [n, *shape] for
    each example; truncated: bool [B], texts longer than the teacher takes; images: PNG files, one
    per example, of a teacher that generates images and keeps them; invalid: example -> the
    feature whose outputs were not finite, where stored integers would not show it; refused: example
    -> why there is no answer to it, whatever stands in its place; fidelity: name -> error of the
    stored feature for each example, None where it was not measured.
    """

    features: Mapping[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]]
    truncated: npt.NDArray[np.bool_]
    images: Sequence[bytes] = field(default=())
    invalid: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    fidelity: Mapping[str, Sequence[Fidelity | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """N examples as a teacher's model reads them.

    buckets: the padded length of each, [N]; inputs: whatever the teacher's `prepare` made of the
    examples, with a method `take` if `Prepared.take` is to be used; lengths: without padding, [N],
    where buckets are lengths in tokens, to be counted."""

    examples: Sequence[Example]
    buckets: IntArray
    inputs: Any = None
    lengths: IntArray | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: IntArray) -> "Prepared":
        """Some of the examples, in the order of `rows` [B]."""
        inputs = None if self.inputs is None else self.inputs.take(rows)
        examples: Sequence[Example]
        if isinstance(self.examples, Examples):
            examples = self.examples.take(rows)
        else:
            examples = [self.examples[row] for row in rows.tolist()]
        lengths = None if self.lengths is None else self.lengths[rows]
        return Prepared(examples, self.buckets[rows], inputs, lengths)


Outputs = Callable[[], Answers]
"""The outputs of a batch whose computation has begun; waits for them. For any thread."""


class Teacher(ABC):
    """A frozen black box. Subclasses: `Options`, `settings`-relevant parts, `load`, `encode`."""

    Options: ClassVar[type[TeacherOptions]] = TeacherOptions
    kind: ClassVar[str]
    selecting: ClassVar[frozenset[str]] = frozenset()
    """Options that only choose which features there are. Features can be added by them later,
    without computing the others again."""
    default_batch_size: ClassVar[int] = 64
    default_batch_tokens: ClassVar[int | None] = None
    """Padded tokens of a batch, where buckets are lengths in tokens: so many rows as have them.
    None: `default_batch_size` rows of any length."""
    default_rows_per_shard: int = DEFAULT_ROWS_PER_SHARD
    probe_rows: ClassVar[int] = 64
    """Examples, at most, by which a dry run estimates the cost."""
    computes_elsewhere: ClassVar[bool] = False
    """Whether another process computes, so that it is not known how long a device is busy."""
    asks_a_server: ClassVar[bool] = False
    """Whether what it computes is computed elsewhere, by requests that may have to be paid: then
    `begin`, `committed`, `requests` and `close` are its, too, and one process asks."""

    spec: TeacherSpec
    """Set by the constructor, before anything heavy is loaded; or by `settle`."""
    notes: tuple[str, ...] = ()
    """Warnings before it runs: options that differ from what its source declares."""

    @abstractmethod
    def __init__(self, source: str, options: Any, device: torch.device) -> None:
        """Read configuration and digest weights; raises TeacherSourceError for a bad source."""

    @abstractmethod
    def load(self) -> None:
        """Build the model on the device; called once, before the first `encode`."""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> Answers:
        """Compute the features of a batch; called under `torch.inference_mode`."""

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, from the example alone; called after `load`.

        Only examples of one bucket share a batch. So the padded length of an example, and with it
        the last bit of its features, does not depend on its neighbours: on a CPU (`in_row_groups`);
        on a GPU, which chooses kernels by batch size, features agree up to rounding. Default: one
        bucket.
        """
        return [0] * len(examples)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """What is done once for each example before the model: its tokens, say. Called after
        `load`, on the CPU, in a thread beside `start`. Default: nothing but `buckets`."""
        return Prepared(examples, np.asarray(self.buckets(examples), dtype=np.int64))

    def start(self, batch: Prepared) -> Outputs:
        """Begin to compute prepared examples of one bucket; called under `torch.inference_mode`.

        On a GPU the next batch is begun before the outputs of this one are asked for, in another
        thread: nothing here should wait for the device. Default: `encode`."""
        answers = self.encode(list(batch.examples))
        return lambda: answers

    def check(self, examples: Sequence[Example]) -> None:  # noqa: B027
        """Raise JobError for examples with other segments than this teacher reads. Called with some
        of a corpus before anything is computed; may be called before `load`. Default: any will do.
        """

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """The share of unknown tokens in these texts, if it is most of them; may be called before
        `load`. Default: None, not known."""
        return None

    def settle(self, cached: Sequence[TeacherSpec]) -> None:  # noqa: B027 (most have nothing to do)
        """Set the `spec`, if settings alone don't tell it, from the teachers of a cache or by
        asking. Called once, before anything but `spec` is used. Default: it is set."""

    def begin(  # noqa: B027
        self, replies: "KeptReplies", earlier: Sequence[RunRecord], pending: Sequence[Example]
    ) -> None:
        """A run begins to ask a server, after `load`: `replies` keeps what it says until that is in
        a shard; earlier: the records of the cache's runs; pending: the examples that no shard has
        now, of which other processes may compute some. Default: nothing."""

    def committed(self, keys: KeyArray) -> None:  # noqa: B027
        """The features of these examples [N, 16] are in the cache. Default: nothing."""

    def requests(self) -> RequestFigures | None:
        """The requests of this run so far. Default: None, it makes none."""
        return None

    def forecast(self, rows: int) -> RequestFigures | None:
        """The requests that so many more examples will take, as far as those that were computed
        since `load` tell. Default: None, it makes none."""
        return None

    def close(self) -> None:  # noqa: B027
        """A run has ended, in whatever way. Default: nothing."""


def load_teacher(teacher: Teacher) -> None:
    """Load a teacher's model. Raises RunError where it does not fit into memory."""
    too_large = RunError(
        f"device memory: the model of teacher {teacher.spec.kind}:{teacher.spec.name} does not "
        "fit; use a device with more memory, a smaller dtype, or a smaller model"
    )
    with out_of_memory_as(lambda: too_large):
        teacher.load()


def matrix_products_of(teacher: Teacher) -> AbstractContextManager[None]:
    """The precision of float32 matrix products that the teacher's settings name."""
    precision: Any = teacher.spec.settings.get("matmul_precision", "highest")
    return matrix_products(precision)


def make_spec(
    kind: str,
    name: str,
    weights: dict[str, str],
    options: TeacherOptions,
    features: Sequence[FeatureSpec],
    **resolved: SettingValue,
) -> TeacherSpec:
    """A spec whose settings are the options, with `resolved` instead of 'auto'."""
    settings = options.settings() | resolved
    return TeacherSpec(
        kind=kind, name=name, weights=weights, settings=settings, features=tuple(features)
    )


def example_seed(base_seed: int, key: bytes) -> int:
    """A 63-bit seed from the teacher's seed and the example's key: the same example gets the same
    randomness in any batch, order, shard, device count or run."""
    hasher = blake2b(key, digest_size=8, salt=base_seed.to_bytes(8, "little"))
    return int.from_bytes(hasher.digest(), "little") >> 1


ROW_GROUP = 4
"""Rows of a CPU batch come in such groups. Measured with torch 2.15 (MKL, AVX-512, float32, 1 to 64
threads): the rows of a matrix product that are left over beyond a multiple of 4 may differ in the
last bits from what they are in a larger batch; with none left over no row ever differed."""


def in_row_groups(rows_BT: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`rows_BT` on the device; on a CPU the last row is repeated until B is a multiple of 4.

    So that heads and projections, which see one row a text, give a text the same bits in a batch
    of any size. A GPU chooses its kernels by size anyway, and is spared the rows."""
    if device.type == "cpu":
        lacking = -len(rows_BT) % ROW_GROUP
        return torch.cat([rows_BT, rows_BT[-1:].expand(lacking, -1)]) if lacking else rows_BT
    return to_device(rows_BT, device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; the copy to a GPU goes on beside what comes next."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
    """Begin to copy tensors to this machine's memory; the result waits for them, in any thread."""
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: [tensor.cpu().numpy() for tensor in tensors]
    copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> list[npt.NDArray[Any]]:
        arrived.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
