"""What stage 1 costs beside the model: a real tokenizer, and a device that is only pretended.

The device is a clock: a batch is done a set time after the one before it, or after it was handed
over if that is later. So its busy share is what a real one of that speed would have at most.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from armada.cache_schemas.manifest import TeacherManifest
from armada.stages.corpus.corpus import read_corpus
from armada.stages.corpus.hub_datasets import in_memory
from armada.stages.precompute.batching import BatchSizes
from armada.stages.precompute.precompute import EncodingRun, precompute
from armada.stages.precompute.teachers.base import Answers, Example, Outputs, Prepared
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.store.writing.writer import CacheWriter, Work


class PretendedDevice(EncoderTeacher):
    """An encoder whose model takes `text_s` a text, on a device of its own, and gives zeros."""

    text_s = 0.0
    prepared: dict[bytes, Prepared] | None = None
    """By the key of its first text, a shard that was tokenized before: a tokenizer of no cost."""

    def load(self) -> None:
        self._busy_until = self.busy_s = 0.0
        self.first = self.last = 0.0
        self.tokenizing_s = 0.0
        self._lock = threading.Lock()

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        key = examples[0].key
        if self.prepared is not None and key in self.prepared:
            return self.prepared[key]
        started = time.thread_time()
        found = super().prepare(examples)
        self.tokenizing_s += time.thread_time() - started
        if self.prepared is not None:
            self.prepared[key] = found
        return found

    def start(self, batch: Prepared) -> Outputs:
        rows: Any = batch.inputs
        self._texts.inputs(rows, torch.device("cpu"))
        values = {
            each.name: np.zeros((len(batch), *each.shape), "f4") for each in self.spec.features
        }
        answers = Answers(values, rows.truncated)
        now = time.perf_counter()
        self.first = self.first or now
        self._busy_until = done = max(now, self._busy_until) + self.text_s * len(batch)
        self.busy_s += self.text_s * len(batch)

        def outputs() -> Answers:
            time.sleep(max(0.0, done - time.perf_counter()))
            self.last = time.perf_counter()
            return answers

        return outputs


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a run without a model: processor seconds in all, of them in the tokenizer, and in the
    thread that gives the device its batches; the share of the time, from the first batch to the
    last outputs, in which the device had work."""

    cpu_s: float
    tokenizing_s: float
    feeding_s: float
    busy: float


def cost(folder: str, texts: Sequence[str], text_s: float, tokenized_before: bool) -> Cost:
    """What `precompute` takes with a pretended device."""
    options = EncoderOptions(max_length=128)
    teacher = PretendedDevice(folder, options, torch.device("cpu"))
    teacher.text_s = text_s
    teacher.prepared = {} if tokenized_before else None
    corpus = read_corpus((in_memory(pa.table({"text": list(texts)})),), ("text",))
    keys = corpus.keys()
    manifest = TeacherManifest(
        fingerprint=teacher.spec.fingerprint, rows_per_shard=16_384, spec=teacher.spec
    )
    for _ in range(2 if tokenized_before else 1):
        teacher.load()
        with tempfile.TemporaryDirectory() as cache:
            started = time.process_time()
            with CacheWriter(Path(cache), manifest) as writer:
                work = Work(writer, keys)
                sizes = BatchSizes.of(teacher, None)
                feeding = time.thread_time()
                precompute(corpus, keys, work, teacher, writer, EncodingRun(sizes))
                feeding_s = time.thread_time() - feeding
            cpu_s = time.process_time() - started
    busy = teacher.busy_s / (teacher.last - teacher.first)
    return Cost(cpu_s, teacher.tokenizing_s, feeding_s, busy)
