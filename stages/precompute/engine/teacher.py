"""vLLM as a teacher, in a process beside armada's: `vllm:MODEL`.

Of texts and of responses it has the features of `causal_lm`, by the same names, tokens and codings,
so that students do not know the difference. Its numbers differ in their last digits: the engine and
its version are among the settings. It batches by itself, continuously: it is handed the examples of
a shard all at once, and those of the next shard before these are done.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ....cache_schemas.errors import RunError, TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.keys import IntArray
from ....cache_schemas.locations import expand_home
from ...pretrained import source_name
from ...tokenizing.unknown import Unknown, mostly_unknown
from ..teachers.base import Answers, Example, Outputs, Prepared, Teacher, make_spec
from .choices import ChoicesTask
from .embeddings import EmbeddingTask
from .options import VLLMOptions
from .process import EngineProcess, RefusedRequestError, version_of
from .source import EngineSource, Found, Request, Task
from .tokens import TokenTask
from .worker import Message


@dataclass(frozen=True, slots=True)
class _Coming:
    """Examples as the task reads them, and the coming answers to each, by task or name."""

    texts: Any
    futures: Sequence[Mapping[str, "Future[Message]"]]

    def take(self, rows: IntArray) -> "_Coming":
        return _Coming(self.texts.take(rows), [self.futures[row] for row in rows.tolist()])


class VLLMTeacher(Teacher):
    """Answers with the features of `TokenTask`, `ChoicesTask` or `EmbeddingTask`."""

    Options = VLLMOptions
    kind = "vllm"
    selecting = frozenset(
        {"top_k", "top_k_bits", "characters", "max_new_tokens", "responses_per_prompt"}
        | {"generated_top_k", "own_log_probs", "score"}
    )
    computes_elsewhere = True
    default_batch_size = 32
    """Examples whose answers are taken up together; batches are the engine's own matter."""
    default_rows_per_shard = 1024

    def __init__(self, source: str, options: VLLMOptions, device: torch.device) -> None:
        self._options, self._device = options, device
        self._process: EngineProcess | None = None
        if options.engine_python is None:
            require_extra("teacher vllm", "vllm", "vllm")
        self._python = expand_home(options.engine_python or sys.executable)
        self._source = EngineSource(source, options.revision)
        task = EmbeddingTask if options.runner == "pooling" else TokenTask
        self._task: Task = (ChoicesTask if options.answers else task)(self._source, options)
        self.notes = self._task.notes
        self._dtype = self._source.dtype if options.dtype == "auto" else options.dtype
        spec = make_spec(
            self.kind,
            source_name(source, options.revision),
            {"model": self._source.digest()},
            options,
            self._task.features(),
            revision=None,  # the digest identifies it
            dtype=self._dtype,
            engine=version_of(self._python),
            **self._task.settings(),
        )
        self.spec = spec.model_copy(update={"vocab_digest": self._task.vocab_digest})

    def load(self) -> None:
        """Start the engine, which reads the weights. Raises TeacherSourceError if it does not."""
        options = self._options
        settings = {
            **self._task.engine(),
            "model": str(self._source.folder),
            "dtype": self._dtype,
            "tensor_parallel_size": options.tensor_parallel_size,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enforce_eager": options.enforce_eager,
            "trust_remote_code": False,
            "load_format": "safetensors",
            "generation_config": "vllm",  # nothing of the folder's own is mixed into requests
        }
        alone = options.tensor_parallel_size == 1
        gpu = gpu_name(self._device, os.environ) if alone else None
        try:
            self._process = EngineProcess(self._python, settings, gpu)
        except RunError as cause:
            raise TeacherSourceError(f"source {self._source.folder}: {cause}") from cause
        if requests := self._task.beforehand():
            self._task.learn(_found(self._ask(requests)))

    def check(self, examples: Sequence[Example]) -> None:
        """See Teacher."""
        for example in examples:
            self._task.check(example)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Send all requests: the engine has the next shard's before this one's are done."""
        texts = self._task.read(examples)
        futures = [self._ask(of_one) for of_one in self._task.requests(texts, examples)]
        buckets = np.zeros(len(examples), dtype=np.int64)
        return Prepared(examples, buckets, _Coming(texts, futures))

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        return partial(self._answers, batch.inputs)

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Send the requests, and wait."""
        return self._answers(self.prepare(examples).inputs)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        texts = [text for example in examples for text in self._task.own_texts(example)]
        return mostly_unknown(self._source.tokenizer, texts)

    def close(self) -> None:
        """End the engine."""
        if self._process is not None:
            self._process.close()

    def _ask(self, requests: Sequence[Request]) -> "dict[str, Future[Message]]":
        """Send the requests for one example."""
        assert self._process is not None
        ask = self._process.ask
        return {
            each.name or each.task: ask({"task": each.task, **each.arguments}, each.ids)
            for each in requests
        }

    def _answers(self, coming: _Coming) -> Answers:
        return self._task.answers(coming.texts, [_found(each) for each in coming.futures])


def _found(futures: Mapping[str, "Future[Message]"]) -> Found:
    """Wait for the answers to one example."""
    try:
        answers = {task: future.result() for task, future in futures.items()}
    except RefusedRequestError as refusal:
        return Found(refused=f"the engine refuses it ({refusal})")
    finish = answers["continue"][0]["finish"] if "continue" in answers else ()
    return Found({task: arrays for task, (_, arrays) in answers.items()}, finish)


def gpu_name(device: torch.device, environment: Mapping[str, str]) -> str | None:
    """What the engine is to see as its only GPU, for a device with a number; else None."""
    if device.type != "cuda" or device.index is None:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[device.index].strip() if visible else str(device.index)
