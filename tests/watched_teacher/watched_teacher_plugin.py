"""A teacher of another package that writes down who loads it and what it is asked.

It answers as the hash teacher does, at two milliseconds a text. In the folder named by
WATCHED_TEACHER_JOURNAL the files `loads` and `closed` get a line for each process that loads or
closes it, `prepared` and `asked` a line for each text before it is prepared or answered: the
process, and the text. A text that contains 'unspeakable' has no finite answer, one that contains
'broken' breaks the teacher, 'deadly' its process. At 'faulty', the device of the process fails and
stays so; at 'faulty once', that of the first alone. At 'patient', the answer waits for a file
`gate` in the folder.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from armada.stages.precompute.teachers.base import Answers, Example, Prepared
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher

SECONDS_PER_TEXT = 0.002


class WatchedTeacher(HashTeacher):
    """`watched:8` answers with 8 numbers, in time."""

    kind = "watched"
    _lost = False

    def __init__(self, source: str, options: HashOptions, device: torch.device) -> None:
        super().__init__(source, options, device)
        self.spec = self.spec.model_copy(update={"kind": self.kind})

    def load(self) -> None:
        _write("loads", [f"{os.getpid()}"])

    def close(self) -> None:
        _write("closed", [f"{os.getpid()}"])

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        _write("prepared", [f"{os.getpid()} {' '.join(example.segments)}" for example in examples])
        return super().prepare(examples)

    def encode(self, examples: Sequence[Example]) -> Answers:
        texts = [" ".join(example.segments) for example in examples]
        _write("asked", [f"{os.getpid()} {text}" for text in texts])
        time.sleep(SECONDS_PER_TEXT * len(texts))
        answers = super().encode(examples)
        for row, text in enumerate(texts):
            if "unspeakable" in text:
                answers.features["embedding"][row] = float("nan")
            if "broken" in text:
                raise ValueError("the teacher broke")
            if "faulty" in text and ("once" not in text or _is_first()):
                self._lost = True
            if "patient" in text:
                _wait_for_gate()
            if "deadly" in text:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._lost:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return answers


def _is_first() -> bool:
    try:
        Path(os.environ["WATCHED_TEACHER_JOURNAL"], "faults").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for_gate() -> None:
    while not Path(os.environ["WATCHED_TEACHER_JOURNAL"], "gate").exists():
        time.sleep(0.01)


def _write(name: str, lines: list[str]) -> None:
    if folder := os.environ.get("WATCHED_TEACHER_JOURNAL"):
        with Path(folder, name).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
