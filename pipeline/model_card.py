"""The README of a student folder: what it is, how good, how to open it."""

from typing import Any

import yaml

from ..stages.distill.language.student import LanguageStudent
from ..stages.distill.student import Student
from .distill_job import DistillJob
from .student_data import StudentData

_BODY = """{head}
# {title}

A student trained with [armada](https://arxiv.org/abs/2603.10877): objective `{objective}`,
control `{control}`, seed {seed}. {teacher}

| metric (validation) | value |
| --- | --- |
{rows}

Trained on {examples} examples ({unlabelled} without a label), {columns} -> {label}.

{opening}
"""

_PIPELINE = """It is a {model}, and opens as one:

```python
from transformers import pipeline

pipeline("text-classification", folder, truncation=True)("a text")
```
"""

_RELU = """
A score below 0 stands for 0: the student was trained so, and `armada evaluate` reads it so.
"""

_LANGUAGE = """It is a language model; with `peft`, where adapters were trained:

```python
from transformers import pipeline

pipeline("text-generation", folder)("a text")
```
"""

_ARMADA = """transformers has no class for its head: `AutoModel` opens it without. With it:

```python
import armada

armada.load_student(folder).predict(["a text"])
```
"""


def model_card(
    job: DistillJob, metrics: dict[str, Any], data: StudentData, student: Student | LanguageStudent
) -> str:
    """Markdown with a YAML head as model hubs expect."""
    head = {"library_name": "transformers", "tags": ["armada", "knowledge-distillation"]}
    values = metrics["validation"] or {}
    return _BODY.format(
        head=f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        title=job.output.name,
        objective=metrics["objective"],
        control=metrics["control"],
        seed=metrics["seed"],
        teacher=_teacher(data),
        rows="\n".join(f"| {name} | {value:.4f} |" for name, value in values.items()),
        examples=metrics["train_examples"],
        unlabelled=metrics["unlabelled_examples"],
        columns=", ".join(f"`{name}`" for name in job.text_column),
        label=f"`{job.label_column}`" if job.label_column else "the teacher's feature",
        opening=_opening(student),
    )


def _opening(student: Student | LanguageStudent) -> str:
    if isinstance(student, LanguageStudent):
        return _LANGUAGE
    if student.pooling != "own":
        return _ARMADA
    opened = _PIPELINE.format(model=type(student.model).__name__)
    return opened + _RELU if student.space.regression else opened


def _teacher(data: StudentData) -> str:
    if data.cache is None or data.feature is None:
        return "No teacher."
    spec = data.cache.teacher.spec
    return (
        f"Teacher `{spec.kind}:{spec.name}`, feature `{data.feature.spec.name}`, "
        f"fingerprint `{data.cache.teacher.fingerprint}`."
    )
