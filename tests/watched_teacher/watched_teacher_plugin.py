"""A teacher of another package that writes down who loads it and what it is asked.

It answers as the hash teacher does, at two milliseconds a text. In the folder named by
WATCHED_TEACHER_JOURNAL the file `loads` gets a line for each process that loads it, `asked` a line
for each text before it is answered: the process, and the text. A text that contains 'unspeakable'
has no finite answer, one that contains 'broken' breaks the teacher, 'deadly' its process.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher

SECONDS_PER_TEXT = 0.002


class WatchedTeacher(HashTeacher):
    """`watched:8` answers with 8 numbers, in time."""

    kind = "watched"

    def __init__(self, source: str, options: HashOptions, device: torch.device) -> None:
        super().__init__(source, options, device)
        self.spec = self.spec.model_copy(update={"kind": self.kind})

    def load(self) -> None:
        _write("loads", [f"{os.getpid()}"])

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
            if "deadly" in text:
                os.kill(os.getpid(), signal.SIGKILL)
        return answers


def _write(name: str, lines: list[str]) -> None:
    if folder := os.environ.get("WATCHED_TEACHER_JOURNAL"):
        with Path(folder, name).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
