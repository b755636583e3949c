"""A teacher of another package: answers as the hash teacher does, at two milliseconds a text.

It is found by the entry point beside this file when this folder is on the path. Before it answers,
it adds one byte a text to the file named by SLOW_TEACHER_JOURNAL, so that a test knows where it is.
"""

import os
import time
from collections.abc import Sequence

import torch
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher

SECONDS_PER_TEXT = 0.002


class SlowTeacher(HashTeacher):
    """`slow:16` answers with 16 numbers, in time."""

    kind = "slow"

    def __init__(self, source: str, options: HashOptions, device: torch.device) -> None:
        super().__init__(source, options, device)
        self.spec = self.spec.model_copy(update={"kind": self.kind})

    def encode(self, examples: Sequence[Example]) -> Answers:
        if journal := os.environ.get("SLOW_TEACHER_JOURNAL"):
            with open(journal, "ab") as file:
                file.write(b"." * len(examples))
        time.sleep(SECONDS_PER_TEXT * len(examples))
        return super().encode(examples)
